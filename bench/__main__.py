"""All benches that fit this machine, in one run: ``python -m bench``.

Results are checked first, then the ceilings are measured, then everything is timed against them. Single benches:
``python -m bench.layer``, ``bench.kernels``, ``bench.ema``, ``bench.align``, ``bench.augment``, ``bench.codec``,
``bench.copies``, ``bench.features``, ``bench.feed``, ``bench.finetune``, ``bench.memory``, ``bench.scores``,
``bench.step``, ``bench.trainer``. What a CPU does alone (augment, codec, copies, feed, memory, scores, trainer) is not
measured while a GPU waits.
"""

from importlib.util import find_spec

from bench import align, augment, codec, copies, ema, features, feed, finetune, layer, memory, scores, step, trainer
from bench.command import parse, run

if __name__ == "__main__":
    on_host = {
        "augment": augment,
        "codec": codec,
        "feed": feed,
        "copies": copies,
        "memory": memory,
        "scores": scores,
        "trainer": trainer,
    }
    benches = {"layer": layer, "ema": ema, "align": align, "step": step, "features": features, "finetune": finetune}
    if find_spec("triton") is None:
        print("skipped: kernels, since Triton is not installed")
    else:
        from bench import kernels

        benches["kernels"] = kernels
    if not parse(__doc__).on_gpu:
        benches |= on_host
    run(__doc__, benches)
