"""Decoded images kept in memory, shared by a training process and its workers."""

import math
import mmap
import multiprocessing

import numpy as np

from dexcore.host import host_memory

_ALIGNMENT = 64


class DecodedCache:
    """Images as they are stored, by their row; the first that come stay, until the cache is full.

    Nothing is put out: every image of an epoch is asked for about once, so that what is read first is as good as what
    is read last. The memory is anonymous and made before workers are forked, which then share it; a container's
    /dev/shm, often 64 MB, is not touched.

    Args:
        images: rows.
        size: bytes.
    """

    def __init__(self, images: int, size: int) -> None:
        self.size = size
        self._pixels = mmap.mmap(-1, max(size, 1))  # pages are taken as they are written
        table = mmap.mmap(-1, max(images, 1) * 40)
        # Of each image: 1 + where its pixels begin (0: it is not there), height, width, channels (0: gray), item size.
        self._places = np.frombuffer(table, np.int64, images * 5).reshape(images, 5)
        self._end = np.frombuffer(mmap.mmap(-1, 8), np.int64, 1)
        self._lock = multiprocessing.Lock()

    def get(self, row: int) -> np.ndarray | None:
        """Give an image's pixels, read-only; None where they are not there."""
        with self._lock:
            place, height, width, channels, itemsize = self._places[row].tolist()
        if not place:
            return None
        shape = (height, width, channels) if channels else (height, width)
        dtype = np.uint8 if itemsize == 1 else np.uint16
        pixels = np.frombuffer(self._pixels, dtype, math.prod(shape), offset=place - 1).reshape(shape)
        pixels.flags.writeable = False
        return pixels

    def put(self, row: int, pixels: np.ndarray) -> None:
        """Keep an image, uint8 or uint16 [H, W] or [H, W, C], where there is room for it."""
        room = -(-pixels.nbytes // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            start = int(self._end[0])
            if self._places[row, 0] or start + room > self.size:
                return
            self._end[0] = start + room
        np.frombuffer(self._pixels, pixels.dtype, pixels.size, offset=start)[:] = pixels.ravel()
        with self._lock:  # whoever sees the place sees the pixels
            self._places[row] = (
                start + 1,
                *pixels.shape[:2],
                pixels.shape[2] if pixels.ndim == 3 else 0,
                pixels.itemsize,
            )

    @property
    def filled(self) -> int:
        """Bytes in use."""
        return int(self._end[0])


def memory_share(share: float, processes: int = 1) -> int:
    """Bytes that are ``share`` of the memory that this machine, or the container, lets a user have, a process."""
    return int(host_memory() * share) // processes
