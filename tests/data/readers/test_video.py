"""Videos: which frames, how they are turned, and the end that is missing."""

import struct

import numpy as np
import pytest
from made_kinds import write_video

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.scan import MAX_FRAME_PIXELS
from dexcore.data.readers.video import iterate_video


def _frames(count=40, height=48, width=64):
    """Frame i has the brightness 5 i, and a white corner at the top left."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (5 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    frames[:, : height // 3, : width // 3] = 255
    return frames


_KINDS = [
    ("a.avi", "mjpeg", "yuvj444p"),
    ("a.avi", "mpeg4", "yuv420p"),
    ("a.mp4", "libx264", "yuv420p"),
    ("a.mov", "libx264", "yuv444p"),
    ("a.mkv", "ffv1", "bgr0"),
    ("a.webm", "libvpx-vp9", "yuv420p"),
    ("a.mpg", "mpeg2video", "yuv420p"),
    ("a.wmv", "wmv2", "yuv420p"),
]


@pytest.mark.parametrize(("name", "codec", "pixel_format"), _KINDS)
def test_one_frame_in_every_seven_is_read_from_every_container(tmp_path, name, codec, pixel_format):
    frames = _frames()
    scan = read_file(write_video(tmp_path / name, frames, codec, pixel_format), every=7)
    assert scan.frames == tuple(range(0, 40, 7))
    assert scan.pixels.shape == (6, 48, 64, 3)
    assert scan.pixels.dtype == np.uint8
    assert (scan.levels, scan.spacing) == ((0.0, 255.0), None)
    assert np.abs(scan.pixels.astype(int) - frames[::7]).mean() < 5
    np.testing.assert_allclose(scan.pixels[:, 30:, 30:].mean((1, 2, 3)), 5 * np.arange(0, 40, 7), atol=4)


def test_lossless_frames_are_read_as_they_are(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.avi", frames, "ffv1", "bgr0")
    np.testing.assert_array_equal(read_file(path).pixels, frames)


def test_gray_frames_stay_gray(tmp_path):
    frames = np.repeat(_frames(3)[..., :1], 3, axis=3)
    scan = read_file(write_video(tmp_path / "a.avi", frames, "ffv1", "gray"))
    assert scan.pixels.shape == (3, 48, 64)
    assert np.abs(scan.pixels.astype(int) - frames[..., 0]).max() <= 2


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_video_that_a_turned_camera_took_stands_upright(tmp_path, rotation, turns):
    scan = read_file(write_video(tmp_path / "a.mp4", _frames(3), "libx264", "yuv444p", rotation=rotation))
    upright = np.rot90(_frames(3), turns, axes=(1, 2))
    assert scan.pixels.shape == upright.shape
    assert np.abs(scan.pixels.astype(int) - upright).mean() < 5


@pytest.mark.parametrize(("rotation", "spacing"), [(0, (1, 2)), (90, (2, 1))])
def test_pixels_that_are_not_square_say_so(tmp_path, rotation, spacing):
    path = write_video(tmp_path / "a.mp4", _frames(3), "libx264", "yuv420p", rotation=rotation, aspect=2)
    assert read_file(path).spacing == spacing
    assert next(iterate_video(path)).spacing == spacing


def test_frames_are_given_one_by_one(tmp_path):
    path = write_video(tmp_path / "a.avi", _frames())
    scan, given = read_file(path, every=9), list(iterate_video(path, every=9))
    assert [one.frames for one in given] == [(0,), (9,), (18,), (27,), (36,)]
    np.testing.assert_array_equal(scan.pixels, np.concatenate([one.pixels for one in given]))
    with pytest.raises(ValueError, match="every must be at least 1"):
        next(iterate_video(path, every=0))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options", "reason"),
    [
        ("a.avi", "mjpeg", "yuvj444p", {}, "declares 80 frames, 4[0-9] are in the file"),
        (
            "a.mp4",
            "libx264",
            "yuv420p",
            {"movflags": "faststart"},
            r"frame [0-9]+ of 80 cannot be decoded|declares 80 frames, [0-9]+ are",
        ),
        ("a.mp4", "libx264", "yuv420p", {}, "InvalidDataError"),  # the index stood at the end
        ("a.mkv", "ffv1", "yuv420p", {}, "declares 3.2 s, its 4[0-9] frames end after 1.[0-9] s"),
        ("a.mpg", "mpeg2video", "yuv420p", {}, "frame [0-9]+ cannot be decoded"),
    ],
)
def test_a_video_that_was_cut_is_an_error_with_both_numbers(
    tmp_path, capfd, name, codec, pixel_format, options, reason
):
    noise = np.random.default_rng(0).integers(0, 256, (80, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, noise, codec, pixel_format, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    capfd.readouterr()
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        list(iterate_video(path))
    assert caught.value.path == path
    assert capfd.readouterr() == ("", "")


def test_a_part_that_was_edited_away_stays_away(tmp_path):
    path = write_video(tmp_path / "a.mp4", _frames(), "libx264", "yuv420p")
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, data.index(b"elst") + 12, 1000)  # shows the first 1000 ms
    path.write_bytes(data)
    assert read_file(path).frames == tuple(range(25))


def test_playlists_lead_nowhere(tmp_path):
    for name, text in (("a.avi", f"ffconcat version 1.0\nfile {tmp_path / 'b.avi'}\n"), ("a.m3u8", "#EXTM3U\nb.avi\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UnreadableFileError, match="of no known kind"):
            read_file(tmp_path / name)


def test_a_frame_larger_than_the_limit_is_refused_before_it_is_decoded(tmp_path):
    path = write_video(tmp_path / "a.avi", _frames(2), "ffv1", "bgr0")
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 8
    assert struct.unpack_from("<2I", data, at + 4) == (64, 48)
    struct.pack_into("<2I", data, at + 4, 1 << 14, (MAX_FRAME_PIXELS >> 14) + 16)
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="pixels, expected at most"):
        read_file(path)
