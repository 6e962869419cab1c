import pytest

from dexcore.report.files import write_whole


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    write_whole(tmp_path / "a", b"old")
    write_whole(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_error_of_the_system_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone/a"):
        write_whole(tmp_path / "gone" / "a", b"new")
