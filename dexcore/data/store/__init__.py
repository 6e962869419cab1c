"""The store of images: Arrow shards and a manifest; written whole or not at all, checked hash by hash."""

from dexcore.data.store.check import check_store
from dexcore.data.store.manifest import ImageDecodeError, Manifest, Row, Shard, StoreError
from dexcore.data.store.read import Store
from dexcore.data.store.write import write_store

__all__ = ["ImageDecodeError", "Manifest", "Row", "Shard", "Store", "StoreError", "check_store", "write_store"]
