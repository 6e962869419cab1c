"""Gray frames in one array, half as large where all values are whole numbers of 16 bits: most CT, MR and X-ray."""

import numpy as np


class GrayStack:
    """Frames that are put in one by one, in any order, as float32 with NaN where nothing is measured.

    They are kept as int16, or uint16, until a value is neither; then all become float32, in the same memory and without
    a second copy. It is as large as float32 needs it, but the system gives memory only to what is written.

    Args:
        frames, rows, columns: the shape.
    """

    def __init__(self, frames: int, rows: int, columns: int) -> None:
        self.shape = (frames, rows, columns)
        self._memory = np.empty(frames * rows * columns, np.float32)
        self._dtype: np.dtype = np.dtype(np.int16)
        self._least = 0.0
        self._nothing: dict[int, np.ndarray] = {}  # where integers stand for NaN, as bits, by frame

    @property
    def pixels(self) -> np.ndarray:
        """[frames, rows, columns]; int16, uint16 or float32. Integers hold any value where a frame has NaN."""
        return self._memory.view(self._dtype)[: self._memory.size].reshape(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        """A copy of a frame, float32."""
        frame = self.pixels[index].astype(np.float32)
        if index in self._nothing:
            frame[np.unpackbits(self._nothing[index], count=frame.size).astype(bool).reshape(frame.shape)] = np.nan
        return frame

    def __setitem__(self, index: int, frame: np.ndarray) -> None:
        nothing = np.isnan(frame)
        values = np.where(nothing, np.float32(0), frame) if nothing.any() else frame
        while self._dtype.kind != "f":
            with np.errstate(invalid="ignore"):  # of values that are too large: they are seen in the next line
                kept = values.astype(self._dtype)
            if np.array_equal(kept, values):
                self._nothing.pop(index, None)
                if values is not frame:
                    self._nothing[index] = np.packbits(nothing)
                self._least = min(self._least, float(values.min()))
                self.pixels[index] = kept
                return
            self._widen()
        self.pixels[index] = frame

    def _widen(self) -> None:
        if self._dtype == np.int16 and self._least >= 0:
            self._dtype = np.dtype(np.uint16)  # the same bits
            return
        # From the last frame on: what is written lies behind the integers that are still to be read.
        wide = self._memory.reshape(self.shape)
        for index in reversed(range(len(self))):
            wide[index] = self[index]
        self._dtype = np.dtype(np.float32)
        self._nothing.clear()
