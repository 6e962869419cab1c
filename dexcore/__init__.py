"""Director-Experts (DEX) vision transformers for medical images.

``import dexcore`` registers the ``dex_vit_*`` models with timm. The layers are in `dexcore.nn`, the
functional ops in `dexcore.ops`, the models in `dexcore.models`; `dexcore.data` and `dexcore.train` are
imported on request and need the extra ``train``.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout the kernels lie beside this package, not in it; an installed dexcore has them inside.
_here = _Path(__file__).resolve().parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

from dexcore import models as models  # noqa: E402  registers the models with timm; needs the path above
