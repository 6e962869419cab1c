import pytest
from made_records import made_records

from dexcore.data.store import write_store


@pytest.fixture
def folder(tmp_path):
    """A store of 20 images of three sources in several shards."""
    folder = tmp_path / "store"
    write_store(made_records(20), folder, name="made", shard_bytes=12_000)
    return folder
