"""Heidelberg Spectralis volumes (``.vol``): optical coherence tomography of the retina."""

import os
import struct

import numpy as np

from dexcore.data.readers.scan import RefusedError, Scan, check_size

VOL_MAGIC = b"HSF-OCT-"
_FILE_HEADER_BYTES = 2048
# The file header from byte 12 on: SizeX, NumBScans, SizeZ, ScaleX, Distance, ScaleZ, SizeXSlo, SizeYSlo.
_HEADER = struct.Struct("<3I3d2I")
_SCAN_MAGIC = b"HSF-BS-"  # each B-scan's own header
_SCAN_HEADER_BYTES_AT = 100
_PATIENT_ID = slice(140, 161)
_INVALID = np.finfo(np.float32).max  # outside of what the scanner saw


def read_heidelberg(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read the B-scans of a ``.vol`` file; its fundus photograph (SLO) and layer boundaries are left out.

    Stored values are reflectivity from 0 to 1. Heidelberg's description of the format ("Special Function: Exporting
    Raw Data") shows them as 255 times their fourth root, as OCTSEG and HeyexImport do; so does this reader, without
    the 255. What the scanner marks as invalid is black.

    Args:
        path: the file.
        every: read one B-scan in this many.

    Returns:
        A scan of layout "frames": float32 [B-scans, depth, width] from 0 to 1, with spacing.

    Raises:
        RefusedError: no ``.vol`` file, shorter than its header says, or over a limit.
    """
    with open(path, "rb") as file:
        header = file.read(_FILE_HEADER_BYTES)
        if len(header) < _FILE_HEADER_BYTES or not header.startswith(VOL_MAGIC):
            raise RefusedError("expected a Heidelberg .vol file, found another or less than its header")
        width, scans, depth, scale_x, _, scale_z, slo_width, slo_height = _HEADER.unpack_from(header, 12)
        (scan_header,) = struct.unpack_from("<I", header, _SCAN_HEADER_BYTES_AT)
        check_size(depth, width, scans)
        step = scan_header + 4 * depth * width
        first = _FILE_HEADER_BYTES + slo_width * slo_height
        held = file.seek(0, os.SEEK_END)
        if first + scans * step > held:
            raise RefusedError(f"the header claims {first + scans * step} bytes, the file holds {held}")
        indices = tuple(range(0, scans, every))
        pixels = np.empty((len(indices), depth, width), np.float32)
        for entry, index in enumerate(indices):
            file.seek(first + index * step)
            if file.read(len(_SCAN_MAGIC)) != _SCAN_MAGIC:
                raise RefusedError(f"no header of B-scan {index} where the file's header puts it")
            file.seek(first + index * step + scan_header)
            pixels[entry] = _displayed(file.read(4 * depth * width)).reshape(depth, width)
    metadata = {"Modality": "OPT", "Manufacturer": "Heidelberg Engineering"}  # OPT: DICOM's word for OCT
    patient = header[_PATIENT_ID].split(b"\0")[0].decode("latin-1").strip()
    if patient:
        metadata["PatientID"] = patient
    known = all(np.isfinite(scale) and scale > 0 for scale in (scale_z, scale_x))
    return Scan(pixels, "frames", (0.0, 1.0), indices, metadata, (scale_z, scale_x) if known else None)


def _displayed(stored: bytes) -> np.ndarray:
    values = np.frombuffer(stored, "<f4")
    invalid = ~np.isfinite(values) | (values == _INVALID)
    return np.sqrt(np.sqrt(np.clip(np.where(invalid, 0, values), 0, 1)))
