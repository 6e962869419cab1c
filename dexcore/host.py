"""The memory of this machine, or of the container that the process runs in."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Of a control group of version 2 and of version 1: its limit, what is used, what that is, the files' part of it.
_VERSION_2 = ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file"))
_VERSION_1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.stat",
    ("total_inactive_file", "total_active_file"),
)


def host_memory() -> int:
    """Bytes that a user may have in all."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *(limit for limit, _ in _limits())])


def free_memory() -> int:
    """Bytes that can still be taken, before anything is swapped or killed: what the system keeps of files gives way.

    Where the system does not tell, as macOS, all that there is.
    """
    free = host_memory()
    if _MEMINFO.is_file():
        free = min(free, _numbers(_MEMINFO)["MemAvailable:"] * 1024)
    return max(0, min([free, *(limit - used for limit, used in _limits())]))


def _limits(
    place: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """Of this process's control group and each above it that limits memory: the limit, and what is used but for files
    (0 where that cannot be read)."""
    found = []
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds and "memory" not in kinds.split(","):
            continue
        root, (limit, used, stat, files) = (place / "memory", _VERSION_1) if kinds else (place, _VERSION_2)
        group = root / path.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            try:
                most = int((folder / limit).read_text())
            except (OSError, ValueError):  # not to be seen from here, or "max"
                continue
            try:
                numbers = _numbers(folder / stat)
                found.append((most, int((folder / used).read_text()) - sum(numbers[name] for name in files)))
            except (OSError, ValueError, KeyError):
                found.append((most, 0))
    return found


def _numbers(path: Path) -> dict[str, int]:
    """Lines ``name number``, perhaps with a unit after it."""
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
