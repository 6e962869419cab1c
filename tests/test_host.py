"""The memory of the machine and of a container's limits, from files as the kernel writes them."""

from pathlib import Path

import pytest

from dexcore.host import _limits, free_memory, host_memory

_VERSION_2 = {
    "memory.max": "1000\n",
    "memory.current": "700\n",
    "memory.stat": "anon 300\nfile 400\nshmem 100\ninactive_file 250\nactive_file 50\n",
}
_VERSION_1 = {
    "memory/memory.limit_in_bytes": "1000\n",
    "memory/memory.usage_in_bytes": "700\n",
    "memory/memory.stat": "inactive_file 1\nactive_file 2\ntotal_inactive_file 250\ntotal_active_file 50\n",
}


@pytest.mark.parametrize("files", [_VERSION_2, _VERSION_1])
def test_of_a_container_what_is_kept_of_files_counts_as_free(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert _limits(tmp_path) == [(1000, 400)]


def test_a_container_without_a_limit_has_none(tmp_path):
    for name, content in {**_VERSION_2, "memory.max": "max\n"}.items():
        (tmp_path / name).write_text(content)
    assert _limits(tmp_path) == []
    assert _limits(tmp_path / "missing") == []


def test_what_is_free_falls_as_memory_is_taken():
    assert 1 << 28 < free_memory() <= host_memory() < 1 << 44
    before = free_memory()
    taken = bytearray(256 << 20)
    assert free_memory() < before - (100 << 20)  # others give and take meanwhile
    assert len(taken) == 256 << 20
    assert Path("/proc/meminfo").is_file() or before == host_memory()
