"""What a run was made by and of: a line in starts.jsonl for its beginning and for every resumption.

No environment variable, user name or remote address of a repository is stored: run folders are handed around.
"""

import functools
import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dexcore
from dexcore.data.feed.pretrain_view import Images
from dexcore.engine.config import ConfigError
from dexcore.engine.device import device_name
from dexcore.engine.folder import LineFile, RunFolderError
from dexcore.engine.numerics import numerics
from dexcore.engine.ranks import environment_number, environment_rank
from dexcore.report.files import STARTS_FILE
from dexcore.report.starts import read_starts
from dexcore.train.begin import weights_file

_PACKAGES = ("torch", "timm", "triton", "numpy", "safetensors", "pyarrow", "opencv-python-headless", "Pillow")
_SECONDS_FOR_GIT = 10
_COMMAND = "dexcore"


def describe_images(images: Images, rows: np.ndarray) -> dict[str, Any]:
    """A store in a few numbers: its name and fingerprint, and how many training images (``rows``) a modality has."""
    names = images.modality_names
    counts = np.bincount(images.modality[rows], minlength=len(names)).tolist()
    training = {name: count for name, count in zip(names, counts, strict=True) if count}
    return {"name": images.name, "fingerprint": images.fingerprint, "images": len(images), "training": training}


def content_of_init(init: str) -> str:
    """SHA-256 of the weights that a model begins with, wherever they lie.

    Raises:
        ConfigError: the file of ``model.init`` cannot be read.
    """
    try:
        with open(weights_file(init), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"model.init: {init} cannot be read: {error.strerror}") from error


def record_start(
    folder: Path,
    step: int,
    device: torch.device,
    images: Mapping[str, Any],
    told: Mapping[str, Any],
    begun_from: str = "",
) -> None:
    """Append a line to starts.jsonl.

    Args:
        folder: of the run.
        step: steps done before.
        device: the run's.
        images: from `describe_images`.
        told: of the run: ``total_steps``, ``batch_size``, and lines of what was ``changed`` since the last start.
        begun_from: the file of the weights that it begins with; known by its content. "": of none.

    Raises:
        ConfigError: that file cannot be read.
        RunFolderError: the line cannot be written.
    """
    begun = {"init_sha256": content_of_init(begun_from)} if begun_from else {}
    with closing(LineFile(folder / STARTS_FILE, first_step=sys.maxsize)) as starts:
        starts.write(
            {
                "step": step,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": command(sys.orig_argv[1:]),
                "versions": {"python": platform.python_version(), "dexcore": dexcore.__version__, **_versions()},
                "git": _running_code(),
                "machine": {
                    "system": f"{platform.system()} {platform.machine()}",
                    "device": device_name(device),
                    "threads": torch.get_num_threads(),
                    "processes": environment_rank()[1],
                    **numerics(),
                },
                "images": images,
                **told,
                **begun,
            }
        )
        starts.sync()


def check_images(folder: Path, fingerprint: str, now: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other images.

    Args:
        folder: of the run.
        fingerprint: of the store that its checkpoint was trained on.
        now: the images at hand, from `describe_images`.

    Raises:
        RunFolderError: they are others; the message says what differs.
    """
    if now["fingerprint"] == fingerprint:
        return
    differences = _image_differences(folder, now) or [f"fingerprint: {fingerprint} -> {now['fingerprint']}"]
    raise RunFolderError(
        f"data.store: the images are not those that {folder} was begun with; expected the same ones. "
        "What differs (then -> now):\n  " + "\n  ".join(differences)
    )


def _image_differences(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """Lines ``training.CT: 12 -> 13``: how the images differ from those that the run in ``folder`` began with."""
    try:
        then = read_starts(folder)[0]["images"]
        before, after = ({**images, **_prefixed(images["training"])} for images in (then, now))
    except (OSError, ValueError, LookupError, TypeError):
        return []  # the fingerprints alone have to say it
    names = [name for name in {**before, **after} if name != "training"]
    return [f"{n}: {before.get(n, 0)} -> {after.get(n, 0)}" for n in names if before.get(n) != after.get(n)]


def repeat_command(out: str) -> str:
    """The command that repeats the run in folder ``out`` into another one, for a program that takes our flags."""
    again = Path(out)
    flags = ["--config", str(again / "config.yaml"), "--out", str(again.with_name(f"{again.name}-again"))]
    script = Path(sys.argv[0])
    if script.parent == Path(dexcore.__file__).parent:  # python -m dexcore, or -m dexcore.cli
        return command(["-m", _COMMAND, "pretrain", *flags])
    return command([sys.argv[0], *(["pretrain"] if script.name == _COMMAND else []), *flags])


def command(arguments: list[str]) -> str:
    """A shell's line that runs Python with ``arguments``, under torchrun where this process is.

    The installed command is called by its name, wherever it lies.
    """
    count = environment_rank()[1]
    own = Path(arguments[0]).name == _COMMAND
    if own:
        arguments = [_COMMAND, *arguments[1:]]
    if count == 1:
        return shlex.join(arguments if own else ["python", *arguments])
    here = environment_number("LOCAL_WORLD_SIZE", 1, count, count)
    machines = [] if here == count else ["--nnodes", str(count // here)]
    words = [*machines, "--nproc-per-node", str(here), *(["--no-python"] if own else [])]
    return shlex.join(["torchrun", *words, *(a for a in arguments if a != "-u")])


def _prefixed(training: Mapping[str, int]) -> dict[str, int]:
    return {f"training.{modality}": count for modality, count in training.items()}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _running_code() -> dict[str, Any] | None:
    """As `_git_state` when this was first asked: what is committed or edited later is not what this process runs."""
    return _git_state()


def _git_state() -> dict[str, Any] | None:
    """The commit that dexcore's code is from and the tracked files that differ from it; None where it is installed."""
    package = Path(dexcore.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changed = _git(package, "rev-parse", "HEAD"), _git(package, "diff", "--name-only", "HEAD")
    return {"commit": (commit or "").strip(), "changed": (changed or "").splitlines()}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_SECONDS_FOR_GIT
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
