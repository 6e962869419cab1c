"""What a user sets of a build, and what of it goes to the workers."""

import hmac
import os
from dataclasses import dataclass, replace
from pathlib import Path

from dexcore.checks import check_kind, check_path, check_whole
from dexcore.data.assemble.walk import path_text
from dexcore.data.modality import Modality
from dexcore.data.sources.catalog import recipe, recipes
from dexcore.data.sources.recipe import Recipe
from dexcore.data.sources.schema import load_recipe, parse_modality

ALL_SOURCES = "all"  # every one of MVU's of which there is a file


@dataclass(frozen=True)
class Settings:
    """What holds for all sources of a build.

    Attributes:
        root: the folder.
        max_side: the largest shorter side of a stored image, pixels.
        min_side: the smallest that is kept, where a source does not say; None: `filter.MIN_SIDE`.
        every: one frame in this many is kept, where a source does not say; None: by kind.
        drop_burned_in: keep images out of which DICOM says that text is burned in.
        hash_paths: paths are replaced by their hashes under ``key``.
        drop_near_copies: keep near-copies of other images of their source out.
        key: of the hashes of groups.
    """

    root: str
    key: bytes
    max_side: int
    min_side: int | None = None
    every: int | None = None
    drop_burned_in: bool = False
    hash_paths: bool = False
    drop_near_copies: bool = False

    def shown(self, path: str) -> str:
        """A path as it stands in the store."""
        if not self.hash_paths:
            return path_text(path)
        return hmac.new(self.key, b"path\0" + os.fsencode(path), "sha256").hexdigest()[:32]

    def of(self, recipe: Recipe) -> "Settings":
        """These settings for one source."""
        return replace(self, hash_paths=self.hash_paths or recipe.hash_paths)

    def source_name(self, folder: str) -> str:
        """The name of a source that gives itself none, from the path of its folder."""
        return f"source-{self.shown(folder)[:8]}" if self.hash_paths else path_text(folder)


@dataclass(frozen=True)
class Options:
    """The arguments of `dexcore.data.build_store` that decide over the store.

    Raises:
        TypeError, ValueError: one is not as it must be; the message names it.
    """

    name: str | None = None
    modality: Modality | None = None
    max_side: int = 512
    min_side: int | None = None
    every: int | None = None
    key: Path | None = None
    hash_paths: bool = False
    drop_burned_in: bool = False
    sources: tuple[str | Recipe, ...] = ()
    drop_near_copies: bool = False

    def __post_init__(self) -> None:
        if self.name is not None:
            check_kind("name", self.name, str, "a text")
            if not self.name.strip() or not self.name.isprintable():
                raise ValueError(f"name must be a text of printable characters, got {self.name!r}")
        if self.modality is not None:
            try:
                object.__setattr__(self, "modality", parse_modality(self.modality))
            except ValueError as error:
                raise ValueError(f"modality {error}") from error
        check_whole("max_side", self.max_side, 1)
        for option in ("min_side", "every"):
            if getattr(self, option) is not None:
                check_whole(option, getattr(self, option), 1)
        if self.key is not None:
            check_path("key", self.key)
            object.__setattr__(self, "key", Path(self.key))
        check_kind("hash_paths", self.hash_paths, bool, "True or False")
        check_kind("drop_burned_in", self.drop_burned_in, bool, "True or False")
        check_kind("drop_near_copies", self.drop_near_copies, bool, "True or False")
        if isinstance(self.sources, str):
            raise TypeError(f"sources must be a list of names, got {self.sources!r}")
        object.__setattr__(self, "sources", tuple(self.sources))
        if self.sources and self.modality is not None:
            raise ValueError("modality is set, but the recipes of sources say theirs")

    def recipes(self) -> list[Recipe]:
        """The recipes that ``sources`` names: of this package, or YAML files of the user's.

        Raises:
            RecipeError: there is no such source, or its file is not as it must be.
        """
        found: dict[str, Recipe] = {}
        for source in self.sources:
            if isinstance(source, Recipe):
                named = [source]
            elif source == ALL_SOURCES:
                named = recipes()
            elif source.endswith((".yaml", ".yml")):
                named = [load_recipe(source, Path(source).stem)]
            else:
                named = [recipe(source)]
            found |= {one.name: one for one in named}
        return list(found.values())

    def settings(self, root: Path, key: bytes) -> Settings:
        """What goes to the workers; ``key`` is that of the groups."""
        return Settings(
            root=str(root.resolve()),
            key=key,
            max_side=self.max_side,
            min_side=self.min_side,
            every=self.every,
            drop_burned_in=self.drop_burned_in,
            hash_paths=self.hash_paths,
            drop_near_copies=self.drop_near_copies,
        )

    def source_name(self, root: Path) -> str:
        """The name of the source that lies below no ``dataset.yaml`` of a folder inside, and of the store."""
        return self.name or ("images" if self.hash_paths else path_text(root.resolve().name) or "images")
