"""Files of the kinds that few packages write, made by the formats' descriptions."""

import struct
from pathlib import Path

import numpy as np


def write_vol(
    path: Path,
    scans: np.ndarray,
    scan_header: int = 256,
    slo: tuple[int, int] = (5, 7),
    patient: bytes = b"",
    scale: tuple[float, float] = (0.0038, 0.012),
) -> Path:
    """Heidelberg: [B-scans, depth, width] reflectivity, after a white SLO image of ``slo`` pixels."""
    count, depth, width = scans.shape
    header = bytearray(2048)
    header[:12] = b"HSF-OCT-103\0"
    struct.pack_into("<3I3d2I", header, 12, width, count, depth, scale[1], 0.03, scale[0], *slo)
    struct.pack_into("<I", header, 100, scan_header)
    header[140 : 140 + len(patient)] = patient
    body = b"\xff" * (slo[0] * slo[1])
    for scan in scans:
        body += b"HSF-BS-103\0".ljust(scan_header, b"\7") + scan.astype("<f4").tobytes()
    path.write_bytes(bytes(header) + body)
    return path
