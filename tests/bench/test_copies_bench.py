"""The bench of copies: it runs on drawn images, and does not pass a search that misses some."""

import pytest

from bench import copies
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)


def test_it_runs_and_counts_what_is_missed():
    [line] = copies.measure(OPTIONS, {}, copies.check(OPTIONS))
    assert line["missed"].keys() == copies.CHANGES.keys()
    for found in line["missed"].values():
        assert found["copies"] == 5  # the other half is for the choice of thresholds
    assert sum(line["missed"]["8 bit"].values()) == 5  # none is missed
    assert 0 < line["chosen on the other half"]["all"] < 1
    assert line["strangers"] == {"images": 5, "pairs": 10, "within the radius": 0, "found": 0}
    assert line["neighbours"]["neighbours"] == 0
    assert (line["search"]["planted"], line["search"]["found"]) == (1000, 1000)


def test_a_search_that_misses_a_hash_is_named(monkeypatch):
    right = copies.HashIndex.near
    monkeypatch.setattr(
        copies.HashIndex, "near", lambda index, queries: (pair for pair in list(right(index, queries))[:-1])
    )
    with pytest.raises(WrongResultError, match="999 of 1000 planted hashes"):
        copies.check(OPTIONS)
