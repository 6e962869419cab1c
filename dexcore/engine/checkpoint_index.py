"""The index of a checkpoint, read without trust: a pickle may run anything, and run folders are handed around."""

import pickle
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed.checkpoint as dcp

METADATA = ".metadata"  # PyTorch's name for it


class IndexReader(dcp.FileSystemReader):
    """Reads the index with a whitelist."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with open(Path(self.path) / METADATA, "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    _ALLOWED: ClassVar = {
        "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
        "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"},
        "torch.serialization": {"_get_layout"},
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in self._ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f".metadata names {module}.{name}, which no checkpoint of ours holds")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Any:
    """A member of an Enum, which Python 3.11.2 and its like pickle as ``getattr(kind, name)``; of nothing else."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f".metadata asks for an attribute of {kind!r}, which no checkpoint of ours does")
    return kind[name]
