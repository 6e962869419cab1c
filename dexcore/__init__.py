"""Director-Experts (DEX) vision transformers for medical images.

``import dexcore`` registers the ``dex_vit_*`` models with timm, and the ops with PyTorch. The layers are in
`dexcore.nn`, the functional ops in `dexcore.ops`, the models in `dexcore.models`; `dexcore.data` and `dexcore.train`
are imported on request and need the extra ``train``.

The import itself brings neither PyTorch nor timm, of which what makes stores of images has no use: what is registered
follows where they are imported, before or after.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from dexcore.imports import import_after as _import_after

if _TYPE_CHECKING:
    from dexcore import models as models
    from dexcore import nn as nn
    from dexcore import ops as ops

__version__ = "0.1.0"

# In a checkout the kernels lie beside this package, not in it; an installed dexcore has them inside.
_here = _Path(__file__).resolve().parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

_import_after("torch", "dexcore.ops")
_import_after("timm", "dexcore.registered")


def __getattr__(name: str) -> _ModuleType:
    if name in ("models", "nn", "ops"):
        return _import_module(f"dexcore.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
