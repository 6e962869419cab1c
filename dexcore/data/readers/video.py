"""Videos: AVI, MP4, QuickTime, Matroska, MPEG and Windows Media, decoded by FFmpeg."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.readers.scan import MAX_FRAME_PIXELS, RefusedError, Scan, check_size, unreadable
from dexcore.extras import require

# FFmpeg's names; others (playlists, scripts of cuts) lead to further files.
_CONTAINERS = {"avi", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpeg", "asf"}
_LEFT_OUT_SECONDS = 1.0  # how much sooner than its container the last frame may end


def read_video(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read the frames of a video that fit into memory; `iterate_video` gives those of any video one by one.

    Returns:
        A scan of layout "frames": uint8 [frames, height, width] or [frames, height, width, 3], turned as its metadata
        say; where pixels are not square, spacing with the smaller side as 1.

    Raises:
        RefusedError: no video, fewer frames than the container declares, or over a limit.
        Exception: PyAV raises many more on broken files.
    """
    frames: dict[int, np.ndarray] = {}
    spacing = None
    for index, frame, ratio in _decoded(path, every):
        frames[index], spacing = frame, ratio
        height, width, *channels = frame.shape
        check_size(height, width, len(frames), *channels)
    return Scan(np.stack(list(frames.values())), "frames", (0.0, 255.0), tuple(frames), spacing=spacing)


def iterate_video(path: str | os.PathLike[str], every: int = 1) -> Iterator[Scan]:
    """Give one frame in ``every`` of a video, as `read_video`, with one frame in memory.

    Yields:
        a scan of one frame; its ``frames`` hold the number of it in the file.

    Raises:
        UnreadableFileError: as `read_video`; of a truncated or damaged video, after the last sound frame.
        MissingExtraError: PyAV is not installed.
        ValueError: ``every`` is less than 1.
    """
    check_whole("every", every, 1)
    frames = _decoded(path, every)
    while True:
        with unreadable(path):
            found = next(frames, None)
        if found is None:
            return
        index, frame, spacing = found
        yield Scan(frame[None], "frames", (0.0, 255.0), (index,), spacing=spacing)


def _decoded(path: str | os.PathLike[str], every: int) -> Iterator[tuple[int, np.ndarray, tuple[float, float] | None]]:
    """The wanted frames with the spacing of their pixels, and at the end the question whether these were all."""
    av = require("av", "data")
    with open(path, "rb") as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
        if container.format.name not in _CONTAINERS:
            raise RefusedError(f"a container of kind {container.format.name}, expected one of a video")
        stream = container.streams.best("video")
        if stream is None:
            raise RefusedError("no video in it, expected one beside its sound")
        context = stream.codec_context
        check_size(context.height, context.width)
        context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # the stream inside may claim another size
        context.thread_count = 1  # the assembler has a process for each core
        declared, packets, count, end = stream.frames, 0, 0, 0.0
        shape = None
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise av.InvalidDataError(0, "a damaged frame")
                    if shape is None:
                        shape = frame.width, frame.height
                    elif shape != (frame.width, frame.height):
                        raise RefusedError(f"frame {count} has another size than those before it")
                    if count % every == 0:
                        yield count, _pixels(frame), _spacing(stream, frame)
                    count, end = count + 1, frame.time or end
        except av.FFmpegError as error:
            of = f" of {declared}" if declared else ""
            raise RefusedError(f"frame {count}{of} cannot be decoded: {type(error).__name__}") from error
        packets += sum(entry.size == 0 for entry in stream.index_entries)  # frames that repeat the one before
        _check_complete(container, stream, declared, min(packets, declared), count, end)


def _check_complete(container: Any, stream: Any, declared: int, held: int, count: int, end: float) -> None:
    """An error where the file was cut: FFmpeg takes its end for the video's."""
    if held < declared:
        raise RefusedError(f"the container declares {declared} frames, {held} are in the file")
    if not count:
        raise RefusedError("a video without frames")
    if not declared and container.duration and stream.average_rate:
        seconds = container.duration / 1e6
        end += float(1 / stream.average_rate) - float((container.start_time or 0) / 1e6)
        if end < seconds - _LEFT_OUT_SECONDS:
            raise RefusedError(f"the container declares {seconds:.1f} s, its {count} frames end after {end:.1f} s")


def _pixels(frame: Any) -> np.ndarray:
    """Gray or RGB of 8 bits, upright."""
    name = frame.format.name
    pixels = frame.to_ndarray(format="gray" if name.startswith("gray") else "rgb24")
    quarter_turns, rest = divmod(round(frame.rotation), 90)
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if not rest else pixels


def _spacing(stream: Any, frame: Any) -> tuple[float, float] | None:
    ratio = float(stream.sample_aspect_ratio or 1)  # width of a pixel by its height
    if ratio in (0, 1):
        return None
    spacing = (1.0, ratio) if ratio > 1 else (1 / ratio, 1.0)
    return spacing[::-1] if round(frame.rotation) % 180 == 90 else spacing
