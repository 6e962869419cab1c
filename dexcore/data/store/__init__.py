"""The store of images: Arrow shards and a manifest; written whole or not at all, checked hash by hash.

What builds a store part by part calls `encode_row` (in any process), `ShardWriter`, `Tally`, `Manifest.of` and
`commit`; `write_store` does all of it for records that come one by one.
"""

from dexcore.data.store.check import check_store
from dexcore.data.store.commit import ShardWriter, commit, remove_source, staging_folder
from dexcore.data.store.manifest import ImageDecodeError, Manifest, Row, Shard, SourcePart, StoreError, Tally
from dexcore.data.store.read import Store
from dexcore.data.store.row import encode_row
from dexcore.data.store.write import write_store

__all__ = [
    "ImageDecodeError",
    "Manifest",
    "Row",
    "Shard",
    "ShardWriter",
    "SourcePart",
    "Store",
    "StoreError",
    "Tally",
    "check_store",
    "commit",
    "encode_row",
    "remove_source",
    "staging_folder",
    "write_store",
]
