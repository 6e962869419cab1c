"""The bench of the augmentation: it runs, says what it measured, and times nothing that is wrong."""

import numpy as np
import pytest
import torch

from bench import augment
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)
CEILINGS = {dtype: {"gemm_gflops": 1.0, "copy_gbs": 1.0} for dtype in OPTIONS.dtypes}


def test_it_runs_and_its_lines_say_what_they_measured(capsys):
    threads = torch.get_num_threads()
    lines = augment.measure(OPTIONS, CEILINGS, augment.check(OPTIONS))
    assert [line["contender"] for line in lines] == ["dexcore", "published", "opencv", "torchvision"] * 3
    assert [line["kind"] for line in lines[::4]] == ["gray", "gray, 16 bit", "RGB"]
    for line in lines:
        assert 0 < line["p20"] <= line["median"] <= line["p80"]
        assert line["images_per_second"] == pytest.approx(1 / line["median"])
        assert line["threads"] == 1
        assert {"cpu", "torch", "cv2", "torchvision", "dtype", "height", "width", "size", "bytes"} <= line.keys()
        assert ("goals" in line) == (line["contender"] == "dexcore")
    assert [goal["name"].split()[-1] for goal in lines[0]["goals"]] == ["published", "torchvision"]
    # A gray image in 16 bit has twice the bytes to read and the same to write; RGB thrice of all.
    gray, deep, color = (line["bytes"] for line in lines[::4])
    assert color == pytest.approx(3 * gray, abs=3)
    assert gray < deep < 2 * gray
    assert torch.get_num_threads() == threads


def test_the_images_draws_come_at_the_recipes_rates():
    image = augment.make_image("gray")
    drawn = [augment.draw(image, 256, augment._rng(key)) for key in range(augment._IMAGES)]
    assert np.mean([each.flip for each in drawn]) == 0.5
    assert np.mean([each.angle != 0 for each in drawn]) == 0.5
    assert np.mean([each.flip and each.angle != 0 for each in drawn]) == 0.25


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found[:, ::-1],
        lambda found: np.roll(found, 2, axis=1),
        lambda found: found * 0.9,
        lambda found: found * np.nan,
        lambda found: np.zeros_like(found),
        lambda found: found.astype(np.float64),
    ],
)
@pytest.mark.parametrize("name", ["dexcore", "published", "opencv", "torchvision"])
def test_a_wrong_result_is_named_and_nothing_is_timed(monkeypatch, name, spoil):
    right = augment.CONTENDERS[name]
    monkeypatch.setitem(augment.CONTENDERS, name, lambda *arguments: spoil(right(*arguments)))
    with pytest.raises(WrongResultError, match=f"augment, {name}, gray"):
        augment.check(OPTIONS)
