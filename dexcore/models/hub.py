"""Where a saved model's folder is: here, or on the Hugging Face Hub and then in its client's cache."""

import logging
import os
import re
from pathlib import Path

import dexcore

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # user/name
_log = logging.getLogger(__name__)


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a model of this machine: ``path``, or ``model`` in it where ``path`` is a run's."""
    folder = Path(path)
    inside = folder / "model"
    return inside if (inside / CONFIG_FILE).exists() and not (folder / CONFIG_FILE).exists() else folder


def local_folder(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder ``name``, or, where there is none and it reads as ``user/name``, that model's, fetched from the Hub.

    Of the model on the Hub only weights (safetensors) and configuration are fetched, both of one revision.

    Raises:
        FileNotFoundError: it reads as ``user/name``, is not here, and cannot be had from the Hub; says why.
        ValueError: ``revision`` is given, but ``name`` is a folder that is here.
    """
    path = Path(name)
    if path.exists() or not (isinstance(name, str) and _HUB_NAME.fullmatch(name)):
        if revision is not None:
            raise ValueError(f"revision is of a model on the Hugging Face Hub, but {path} is a path on this machine")
        return path
    from huggingface_hub import snapshot_download

    _log.info("%s: no folder here, so looked for on the Hugging Face Hub", name)
    try:
        fetched = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            token=token,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE],
            library_name="dexcore",
            library_version=dexcore.__version__,
        )
    except Exception as error:  # no network, no such model, no right to it: the client has an error for each
        told = " ".join(str(error).split())[:400]
        raise FileNotFoundError(
            f"{name}: no such folder here, and no such model to be had from the Hugging Face Hub: "
            f"{type(error).__name__}: {told}"
        ) from error
    return Path(fetched)
