"""A run of two ranks, one of which hangs in its images: both end, and the stacks say which one is to blame."""

from pathlib import Path

import pytest
from runs import ends, flags, start_ranks, tiny

HANGS = """
import sys, time
from dexcore.data.feed.pretrain_view import PretrainView
from dexcore.engine.ranks import environment_rank
from dexcore.train.command import main

def never_comes_back():
    time.sleep(600)

get, count = PretrainView.__getitems__, 0
def getting(self, keys):
    global count
    count += 1
    if environment_rank()[0] == 1 and count > 10:
        never_comes_back()
    return get(self, keys)

PretrainView.__getitems__ = getting
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_both_ranks_end_and_the_stacks_name_the_one_that_hangs(store, tmp_path):
    config = tiny(store, tmp_path / "run", stuck_after=20.0, epochs=200)
    codes, _, errors = ends(start_ranks(2, ["-c", HANGS, *flags(config, tmp_path)]))
    assert 0 not in codes
    assert all("no step within 20 s (run.stuck_after)" in error for error in errors), errors
    stacks = [(Path(config.out) / "stuck" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    assert "never_comes_back" not in stacks[0]
    assert "never_comes_back" in stacks[1]
