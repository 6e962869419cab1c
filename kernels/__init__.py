"""Hand-written Triton kernels, one family a file; installed as ``dexcore.kernels``.

A layer's step, file after file: ``route`` chooses, ``plan`` sorts the choices by expert, ``expert_order`` copies tokens
into that order, padded to whole tiles, ``expert_up`` and ``expert_down`` compute on them, ``mix_align`` sums what an
image's experts say and compares it with the director. Backward: ``expert_order``, ``expert_dact``, ``bias_gradients``,
``route``, ``expert_down``, ``mix_align``, ``expert_wgrad``. Then ``group_ema`` moves the directors; ``cast`` copies
weights to half precision where it has not. All launch by ``launch``; ``tiles``, ``numerics`` and ``tables`` are what
kernels share, and ``configs`` says which tiles they take.

From the repository's root this folder is also found as ``kernels``, the name of Hugging Face's package, which
transformers imports. Under that name it hands over to theirs, or is not there.
"""

if __name__ == "kernels":
    import importlib.machinery
    import importlib.util
    import sys
    from pathlib import Path

    _root = Path(__file__).resolve().parents[1]
    _elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _root]
    _theirs = importlib.machinery.PathFinder.find_spec("kernels", _elsewhere)
    if _theirs is None or _theirs.loader is None:
        raise ModuleNotFoundError(
            f"No module named 'kernels': {Path(__file__).parent} holds dexcore's, which are imported as "
            "dexcore.kernels; Hugging Face's come with `pip install kernels`",
            name="kernels",
        )
    _module = importlib.util.module_from_spec(_theirs)
    sys.modules["kernels"] = _module  # what `import kernels` gives
    _theirs.loader.exec_module(_module)
else:
    from dexcore.kernels.warmup import warm_up

    __all__ = ["warm_up"]
