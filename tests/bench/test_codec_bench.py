"""The bench of the store's codec: it runs, says what it measured, and times nothing that is wrong."""

import pytest

from bench import codec, feed
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)


def test_it_runs_and_its_lines_say_what_they_measured():
    lines = codec.measure(OPTIONS, {}, codec.check(OPTIONS))
    assert [line["kind"] for line in lines[::4]] == list(feed.GOALS)
    for store, by_pillow, png, by_opencv in zip(*[iter(lines)] * 4, strict=True):
        assert (store["contender"], png["contender"], png["speedup"]) == ("store", codec.BASELINE, 1)
        assert store["bytes"] == by_pillow["bytes"] > 0
        assert png["bytes"] == by_opencv["bytes"] > 0
        assert store["of"] == "synthetic"


def test_other_pixels_are_named_and_nothing_is_timed(monkeypatch):
    right = codec.decoders

    def wrong(contest):
        decode, size = right(contest)["store, Pillow"]
        return right(contest) | {"store, Pillow": (lambda index: decode(index) ^ 1, size)}

    monkeypatch.setattr(codec, "decoders", wrong)
    with pytest.raises(WrongResultError, match="codec, gray: store, Pillow decodes image 0 to other pixels"):
        codec.check(OPTIONS)
