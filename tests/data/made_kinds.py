"""Files of the kinds that few packages write, made by the formats' descriptions."""

import struct
from fractions import Fraction
from pathlib import Path

import av
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


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str = "mjpeg",
    pixel_format: str = "yuvj444p",
    rotation: int = 0,
    aspect: int = 1,
    **options: str,
) -> Path:
    """[frames, height, width, 3] at 25 frames a second; ``aspect``: how much wider than high a pixel is shown."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if aspect != 1:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
