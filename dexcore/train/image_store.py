"""The images of a run: of a store, or of one that is made in the user's cache, of a folder or of the sample images."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

from dexcore.data import build_store
from dexcore.data.assemble.beside import PAGE, REJECTS
from dexcore.data.assemble.build import build
from dexcore.data.assemble.options import Options
from dexcore.data.assemble.plan import PACKAGES, package_version
from dexcore.data.feed.cache import memory_share
from dexcore.data.feed.dataset import MVUDataset
from dexcore.data.readers import UnreadableFileError
from dexcore.data.sources.samples import link_packages, sample_recipes
from dexcore.data.store.manifest import StoreError
from dexcore.engine.config import ConfigError
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.report.store_page import report_store
from dexcore.train.config import PretrainConfig

# What the sample store's bytes depend on, beside what every store's do and this package's own files.
_SAMPLE_PACKAGES = ("pydicom-data", "nilearn", "scikit-image")


def open_images(config: PretrainConfig, ranks: Ranks = ALONE) -> MVUDataset:
    """The images of a run: of its store, or of the one that is made of a folder or of the sample images; some of them
    are kept in memory once they are decoded.

    Raises:
        ConfigError: the images have not as many channels as the model asks for, or the folder holds none.
        StoreError: the store cannot be read, or made, or it holds no neighbouring slices, and they are asked for.
        MissingExtraError: what reads such images is not installed.
    """
    data = config.data
    if data.slices == 1 and config.model.in_chans not in (1, 3):
        raise ConfigError(f"model.in_chans: expected 1 or 3, which a store's images have, got {config.model.in_chans}")
    store: str | Path = data.store
    if data.images:
        store = ranks.on_main_for_long(lambda: folder_store(data.images, data.modality))
    elif not store:
        store = ranks.on_main_for_long(sample_store)  # built once, not by every rank
    return MVUDataset(store, memory_share(data.cache, ranks.local_count), data.slices)


def folder_store(folder: str, modality: str = "") -> Path:
    """Folder of the store of a folder's images, in the user's cache; built when first needed.

    A store is found again by the folder's path and the modality; files that are new, changed (by size or time) or gone
    are brought up to date, the others not read again.

    Args:
        folder: any (`dexcore.data.build_store`).
        modality: of images that do not say it themselves; "": they do, or a ``dataset.yaml`` does.

    Raises:
        ConfigError: the folder holds no image that can be used; the message says what would help.
        StoreError: there is no cache, or it cannot be written.
        MissingExtraError: what reads such images is not installed.
    """
    place = os.path.realpath(folder)
    key = hashlib.sha256(f"{place}\0{modality}".encode(errors="surrogateescape")).hexdigest()[:12]
    store = cache_folder() / "dexcore" / f"images-{key}"
    try:
        build_store(folder, store, modality=modality or None)
    except ValueError as error:
        raise ConfigError(f"data.images: {error}") from error
    if not (store / PAGE).exists():
        print(f"what was kept and dropped of {folder}: {report_store(store)}", file=sys.stderr, flush=True)
    return store


def sample_store() -> Path:
    """Folder of the sample store in the user's cache; where it is missing it is built (some seconds).

    Raises:
        StoreError: there is no cache, or it cannot be written.
        MissingExtraError: the sample images' packages are not installed.
        UnreadableFileError: one of their images cannot be read.
    """
    cache = cache_folder() / "dexcore"
    folder = cache / f"samples-{_key()}"
    if folder.is_dir():
        return folder
    building = cache / f".samples-{os.getpid()}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        print(f"building the sample images' store in {folder}", file=sys.stderr, flush=True)
        _build_samples(building)
        building.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process was not faster: it is our error
            raise StoreError(
                f"{folder}: the sample images' store cannot be written: {error.strerror or error}; set "
                "XDG_CACHE_HOME to a folder that can be written, or data.store to a store of yours"
            ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _build_samples(folder: Path) -> None:
    # A thread, not processes: a user's script may call `pretrain` without a guard for its main module.
    with tempfile.TemporaryDirectory() as packages, ThreadPoolExecutor(1) as executor:
        link_packages(Path(packages))
        options = Options(name="samples", sources=tuple(sample_recipes()))
        build(packages, folder, options, executor=executor)
    for line in map(json.loads, (folder / REJECTS).read_text(encoding="utf-8").splitlines()):
        if line["reason"].startswith("unreadable"):
            raise UnreadableFileError(line["path"], line["reason"])


def cache_folder() -> Path:
    """The user's folder for caches: XDG_CACHE_HOME where it is set, else what the platform has.

    Raises:
        StoreError: the user has no home, as in a container under a bare number.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"])
    try:
        home = Path.home()
    except RuntimeError as error:
        raise StoreError(
            "the sample images' store has no place, as this user has no home; set XDG_CACHE_HOME to a folder that can "
            "be written, or data.store to a store of yours"
        ) from error
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    return home / ".cache"


def _key() -> str:
    """Changes with the packages' versions and with the code and the recipes in dexcore.data."""
    digest = hashlib.sha256()
    for package in (*PACKAGES, *_SAMPLE_PACKAGES):
        digest.update(f"{package} {package_version(package)}\n".encode())
    data = Path(str(resources.files("dexcore.data")))
    for source in sorted([*data.rglob("*.py"), *data.rglob("*.yaml")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
