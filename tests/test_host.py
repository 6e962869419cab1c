"""The memory of the machine and of a container's limits, from files as the kernel writes them."""

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
    (tmp_path / "membership").write_text("4:cpu:/elsewhere\n3:memory:/\n0::/\n")
    assert _limits(tmp_path, tmp_path / "membership") == [(1000, 400)]


def test_a_group_within_others_has_the_limits_of_all(tmp_path):
    for folder, limit in (("job", 900), ("job/step", 800)):
        (tmp_path / folder).mkdir()
        for name, content in {**_VERSION_2, "memory.max": f"{limit}\n"}.items():
            (tmp_path / folder / name).write_text(content)
    (tmp_path / "job" / "memory.stat").unlink()
    (tmp_path / "membership").write_text("0::/job/step\n")
    assert _limits(tmp_path, tmp_path / "membership") == [(800, 400), (900, 0)]


def test_a_container_without_a_limit_has_none(tmp_path):
    for name, content in {**_VERSION_2, "memory.max": "max\n"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "membership").write_text("0::/\n")
    assert _limits(tmp_path, tmp_path / "membership") == []
    assert _limits(tmp_path, tmp_path / "missing") == []


def test_this_machine_has_some():
    assert 1 << 26 < free_memory() <= host_memory() < 1 << 44
