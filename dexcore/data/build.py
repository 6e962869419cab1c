"""One call from a folder to a store."""

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from dexcore.data.modality import Modality

if TYPE_CHECKING:
    from dexcore.data.store import Manifest


def build_store(
    folder: str | os.PathLike[str] | list[str] | tuple[str, ...],
    out: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    name: str | None = None,
    modality: Modality | str | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    max_side: int = 512,
    min_side: int | None = None,
    every: int | None = None,
    key: str | os.PathLike[str] | None = None,
    hash_paths: bool = False,
    drop_burned_in: bool = False,
    drop_near_copies: bool = False,
    sources: Sequence[str] = (),
    shard_bytes: int = 1 << 30,
) -> "Manifest":
    """Build a store of all images in a folder, or bring one up to date; ``dexcore mvu build`` calls this.

    Kinds are told by content; DICOM files are put together to volumes; the modality comes from DICOM, else from
    ``modality``, else from the nearest ``dataset.yaml`` (`dexcore.data.sources.schema`). What a killed build has done
    is found again; sources whose files did not change are not read again; sources that other folders gave the store
    stay. The store depends on the files, the arguments and the versions of the libraries alone. Beside it lie
    ``rejects.jsonl`` (what was kept out, and why), ``build.json`` (the same as numbers) and ``examples.jsonl`` (small
    pictures of some), of which `dexcore.report.store_page.report_store` makes a page.

    Args:
        folder: any; links in it are followed. Or names for ``sources``, whose downloads lie below ``root``.
        out: the store's folder: empty, or a store, or what a killed build left.
        name: of the source that lies below no ``dataset.yaml`` of a folder inside, and of the store; default: the
            folder's.
        modality: one of the ten.
        jobs: worker processes; default: one for each core.
        executor: instead of worker processes; its workers share the disk with this process.
        max_side: the largest shorter side of a stored image, pixels.
        min_side: the smallest that is kept, where a source does not say; default 64.
        every: one frame in this many is kept, where a source does not say; default: 30 of videos, else 1.
        key: a file with the key of groups' hashes; default: made once in the user's configuration folder.
        hash_paths: replace the paths of files and the names of folders by hashes.
        drop_burned_in: leave out images of which DICOM says that text is burned in.
        drop_near_copies: leave out images that are near-copies of others of their source
            (`dexcore.data.store.copies`), not exact ones alone.
        sources: names of sources of MVU, or YAML files (`dexcore.data.sources.schema`): their recipes decide which
            files of the whole folder are taken, and no ``dataset.yaml`` is looked at; "all": those of MVU that are
            there.
        shard_bytes: a shard is closed when it holds so much.

    Returns:
        The store's manifest.

    Raises:
        TypeError, ValueError: an argument or a ``dataset.yaml`` is not as it must be, or no image was kept; the
            message says what would help.
        StoreError: the store cannot be written, or is being built by another process.
        MissingExtraError: a package that every build needs is not installed.
    """
    from dexcore.data.assemble.build import build
    from dexcore.data.assemble.options import Options

    if isinstance(folder, list | tuple):
        if root is None:
            raise TypeError("root must be the folder with the downloads of these sources, got None")
        sources, folder = folder, root
    elif root is not None:
        raise ValueError("root is for sources in the place of a folder, but a folder is given")
    options = Options(
        name=name,
        modality=modality,  # type: ignore[arg-type]  # checked and turned into a Modality there
        max_side=max_side,
        min_side=min_side,
        every=every,
        key=key,  # type: ignore[arg-type]  # and into a Path
        hash_paths=hash_paths,
        drop_burned_in=drop_burned_in,
        sources=tuple(sources),
        drop_near_copies=drop_near_copies,
    )
    return build(folder, out, options, jobs=jobs, executor=executor, shard_bytes=shard_bytes).manifest
