"""The bench of the feed: it runs, says what it measured, and times nothing that is wrong."""

import numpy as np
import pytest
from corpus import CORPUS, needs_corpus

from bench import feed
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)


def test_it_runs_and_its_lines_say_what_they_measured(monkeypatch):
    monkeypatch.setattr(feed, "measure_store", lambda options: [])  # test_preset_bench.py runs it
    lines = feed.measure(OPTIONS, {}, feed.check(OPTIONS))
    assert [line["contender"] for line in lines] == ["dexcore", "usual", "floor"] * 3
    assert [line["kind"] for line in lines[::3]] == ["gray", "gray, 16 bit", "RGB"]
    for line in lines:
        assert 0 < line["p20"] <= line["median"] <= line["p80"]
        assert line["images_per_second"] == pytest.approx(1 / line["median"])
        assert (line["of"], line["images"], line["threads"]) == ("synthetic", 4, 1)
        assert {"cpu", "cv2", "imagecodecs", "height", "width", "size", "store_bytes", "png_bytes"} <= line.keys()
        assert "goals" not in line  # synthetic images prove nothing


@pytest.mark.parametrize("spoil", [lambda item: item["image"].flip(2), lambda item: item["image"] * 0.8])
def test_a_wrong_result_is_named_and_nothing_is_timed(monkeypatch, spoil):
    right = feed.Contest.usual
    monkeypatch.setattr(feed.Contest, "usual", lambda *arguments: {"image": spoil(right(*arguments))})
    with pytest.raises(WrongResultError, match="feed, gray: image 0 is"):
        feed.check(OPTIONS)


def test_a_png_of_other_pixels_is_named(monkeypatch):
    right = feed.Contest.read_png
    monkeypatch.setattr(feed.Contest, "read_png", lambda *arguments: right(*arguments) ^ 1)
    with pytest.raises(WrongResultError, match="feed, gray: image 0 is decoded to other pixels than its PNG"):
        feed.check(OPTIONS)


@needs_corpus
@pytest.mark.parametrize("kind", feed.GOALS)
def test_the_corpus_has_images_of_each_kind(kind):
    records = feed.corpus_records(CORPUS, kind, 6)
    assert len({record.modality for record in records}) > 1
    for record in records:
        assert (record.image.ndim, record.image.dtype) == (3 if kind == "RGB" else 2, np.float32)
        assert (record.normalization == "div255") == (kind != "gray, 16 bit")


def test_a_corpus_without_images_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has 0 images of the kind gray, expected 4"):
        feed.corpus_records(tmp_path, "gray", 4)
