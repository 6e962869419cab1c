"""The drop-in example, from the command line, in short form."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "drop_in.py"


def run(*arguments):
    return subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True)


def test_it_goes_from_timm_to_dex_and_back_and_prints_the_accuracies():
    done = run("--steps", "5", "--images", "40")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    accuracies = {}
    for line in table:
        name, percent = re.fullmatch(r"(.+?) +([\d.]+)%   .+", line).groups()
        accuracies[name] = float(percent)
    assert list(accuracies) == [
        "accuracy on unseen images",
        "dense ViT",
        "upcycled, through its experts",
        "upcycled, through its director",
        "dense ViT, tuned",
        "director, tuned",
        "collapsed, saved, loaded by timm",
    ]
    assert accuracies["collapsed, saved, loaded by timm"] == accuracies["director, tuned"]
    assert all(0 <= accuracy <= 100 for accuracy in accuracies.values())
    assert last == "the loaded model and the tuned director agree bit for bit"


def test_numbers_out_of_range_are_refused():
    done = run("--steps", "0")
    assert done.returncode == 2
    assert "--steps and --images must be at least 1" in done.stderr
