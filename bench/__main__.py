"""All benches that fit this machine, in one run: ``python -m bench``.

Results are checked first, then the ceilings are measured, then everything is timed against them. Single benches:
``python -m bench.layer``, ``bench.kernels``, ``bench.ema``, ``bench.align``, ``bench.augment``,
``bench.feed``, ``bench.step``. Augmentation and the feed, which a CPU does, are not measured while a GPU waits.
"""

from importlib.util import find_spec

from bench import align, augment, ema, feed, layer, step
from bench.command import parse, run

if __name__ == "__main__":
    benches = {"layer": layer, "ema": ema, "align": align, "augment": augment, "feed": feed, "step": step}
    if find_spec("triton") is None:
        print("skipped: kernels, since Triton is not installed")
    else:
        from bench import kernels

        benches["kernels"] = kernels
    if parse(__doc__).on_gpu:
        del benches["augment"], benches["feed"]
    run(__doc__, benches)
