"""The bench of what grows: real runs of another pool, other chosen experts and other processes, and their picture."""

import json

import torch

from bench import growth, plot
from bench.command import Options


def test_every_case_is_a_run_and_all_are_drawn(tmp_path):
    lines = growth.measure(Options(torch.device("cpu"), quick=True), {}, {})
    assert [(line["varied"], line["value"]) for line in lines] == [
        ("experts", "2"),
        ("experts", "4"),
        ("chosen experts", "1"),
        ("chosen experts", "2"),
        ("processes", "1"),
        ("processes", "2 fsdp"),
    ]
    for line in lines:
        assert min(line["seconds"].values()) > 0
        assert line["mib"] > 0
    (goal,) = lines[-1]["goals"]
    assert goal["value"] == lines[1]["seconds"]["forward"] / lines[0]["seconds"]["forward"]
    (tmp_path / "growth.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot.draw(tmp_path) == [tmp_path / "growth.png"]
