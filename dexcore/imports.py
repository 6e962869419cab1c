"""Modules that are imported as soon as another one is."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def import_after(leader: str, follower: str) -> None:
    """Import module ``follower`` right after ``leader``: now if that is imported already, else when it is.

    ``leader`` is a package of others, not a module in one.
    """
    if leader in sys.modules:
        import_module(follower)
    else:
        sys.meta_path.insert(0, _Finder(leader, follower))


class _Finder(MetaPathFinder):
    def __init__(self, leader: str, follower: str) -> None:
        self.leader = leader
        self.follower = follower

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.leader:
            return None
        for finder in sys.meta_path:
            # An older finder may have no find_spec. Another of these would ask this one again, without end.
            if not isinstance(finder, _Finder) and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader, self.follower)
                    return spec
        return None


class _Loader(Loader):
    """The leader's own, which takes its place again before the module is run. Whoever only looks for a spec sees it."""

    def __init__(self, own: Loader, follower: str) -> None:
        self._own = own
        self._follower = follower

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        import_module(self._follower)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)
