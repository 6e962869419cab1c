"""Where the default images come from."""

import pwd
import sys

import pytest

from dexcore.data.feed.dataset import open_mvu
from dexcore.data.store.manifest import StoreError
from dexcore.extras import MissingExtraError
from dexcore.train.image_store import cache_folder, sample_store


def test_a_missing_package_is_named_with_its_extra_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pydicom .*dexcore\[samples\]"):
        sample_store()
    assert list((tmp_path / "dexcore").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")  # for root, too
    with pytest.raises(StoreError, match=r"/proc/cache/dexcore/samples-\w+: .* cannot be written: .*XDG_CACHE_HOME"):
        sample_store()


def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(StoreError, match=r"no home; set XDG_CACHE_HOME .*, or data\.store to a store"):
        sample_store()


@pytest.mark.slow
def test_the_sample_store_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fingerprint = open_mvu(sample_store()).fingerprint
    built = sample_store().stat().st_mtime_ns
    assert open_mvu(sample_store()).fingerprint == fingerprint
    assert sample_store().stat().st_mtime_ns == built
