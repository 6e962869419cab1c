"""The memory of this machine, or of the container that the process runs in."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# Of a control group of version 2 and of version 1: its limit, what is used, what that is, the files' part of it.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
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


def _limits(place: Path = Path("/sys/fs/cgroup")) -> list[tuple[int, int]]:
    """Of each control group that limits memory the limit, and what is used but for files."""
    found = []
    for limit, used, stat, files in _GROUPS:
        try:
            numbers = _numbers(place / stat)
            held = int((place / used).read_text()) - sum(numbers[name] for name in files)
            found.append((int((place / limit).read_text()), held))
        except (OSError, ValueError, KeyError):  # no such group, or "max"
            continue
    return found


def _numbers(path: Path) -> dict[str, int]:
    """Lines ``name number``, perhaps with a unit after it."""
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}
