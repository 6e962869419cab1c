"""Pictures of made-up lines: every file is drawn, newest lines count, predictions never hide measurements."""

import json

from bench import plot

MACHINE = {"cpu": "a processor", "threads": 2, "torch": "2", "device": "cpu"}
SHAPE = {"images": 4, "tokens": 5, "width": 16, "dtype": "float32"}
TIME = {"median": 2e-3, "p20": 1e-3, "p80": 3e-3}
KERNEL = {**SHAPE, "routing": "two", "kernel": "expert_up", "flops": 10**10, "bytes": 10**6}
PREDICTION = KERNEL | {
    "prediction": True,
    "predicted": 1e-4,
    "assumed": {"gemm_gflops": 8e5, "copy_gbs": 3e3},
}
MEASURED = KERNEL | MACHINE | TIME | {"prediction": False, "device": "a GPU", "gemm_share": 0.5, "copy_share": 0.1}


def write(folder, name, *lines):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_bench_with_lines_gets_a_picture(tmp_path):
    assert plot.draw(tmp_path) == []
    common = {**MACHINE, **SHAPE, **TIME, "contender": "dexcore", "routing": "two", "speedup": 1.0}
    write(tmp_path, "contenders", common)
    write(tmp_path, "layer", {**MACHINE, **SHAPE, "ratios": {"bare": 1.5, "published": 0.8}})
    write(tmp_path, "ema", common | {"layers": 2, "copy_share": 0.5})
    write(tmp_path, "align", common | {"kind": "kd"})
    write(tmp_path, "kernels", PREDICTION)
    drawn = plot.draw(tmp_path)
    assert sorted(path.name for path in drawn) == [
        "align.png",
        "contenders.png",
        "ema.png",
        "kernels.png",
        "layer.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_newest_line_of_a_case_counts(tmp_path):
    write(tmp_path, "ema", {"contender": "a", "median": 1}, {"contender": "b"}, {"contender": "a", "median": 2})
    assert plot.newest(tmp_path / "ema.jsonl") == [{"contender": "b"}, {"contender": "a", "median": 2}]


def test_a_picture_is_of_the_cpu_that_was_measured_last(tmp_path):
    one, other = MACHINE | {"cpu": "one"}, MACHINE | {"cpu": "other"}
    lines = [one | {"kind": "a"}, other | {"kind": "a"}, one | {"kind": "b"}, other | {"kind": "c"}]
    write(tmp_path, "step", *lines)
    assert plot.newest(tmp_path / "step.jsonl") == [lines[1], lines[3]]
    write(tmp_path, "step", *lines, lines[0], PREDICTION)
    assert plot.newest(tmp_path / "step.jsonl") == [lines[2], lines[0]]


def test_measured_kernels_take_the_place_of_predicted_ones(tmp_path):
    write(tmp_path, "kernels", PREDICTION)
    assert plot.newest(tmp_path / "kernels.jsonl") == [PREDICTION]
    write(tmp_path, "kernels", MEASURED, PREDICTION)
    assert plot.newest(tmp_path / "kernels.jsonl") == [MEASURED]


def test_a_picture_of_predictions_says_so(tmp_path):
    figure = plot._kernels([PREDICTION])
    assert figure.get_suptitle().startswith("PREDICTION, not measured")
    assert not plot._kernels([MEASURED]).get_suptitle().startswith("PREDICTION")
