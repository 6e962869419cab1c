"""Predicted times: the queue, the formula against the figures that it was fitted to, and the table."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import contenders, predict
from bench.contenders import REFERENCE, Shape, step_flops
from bench.kernel_work import Problem, Work, work
from bench.predict import FIRST, FIRST_DACT_BY_3_8, Prediction, program_clocks, programs_at_once, queue
from dexcore.kernels.configs import Gemm, LayerConfig
from nn.calls import Calls, note_launches

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"
VERSIONS = ("3.6.0", "3.8.0")  # in the order of the page
PROBLEM = Problem(REFERENCE, torch.bfloat16, "uniform", "sm_90")
GEMMS = {name: before for name, before in FIRST.items() if before.tile is not None}


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []


def test_programs_take_the_first_free_place_in_their_order():
    assert queue([3, 1, 1, 1], 2) == 3
    assert queue([1, 1, 1, 3], 2) == 4  # the long one last
    assert queue([2.0] * 5, 2) == 6
    assert queue([], 2) == 0


def test_more_places_than_programs_end_with_the_longest():
    assert queue([1, 5, 2], 132) == 5


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "expected"),
    [(128, 8, 98304, 2), (129, 8, 98304, 1), (154, 8, 98304, 1), (64, 8, 196608, 1), (32, 4, 0, 16), (255, 16, 0, 1)],
)
def test_registers_shared_memory_and_threads_limit_the_programs_at_once(registers, warps, shared, expected):
    assert programs_at_once(registers, warps, shared) == expected


@pytest.mark.parametrize("name", GEMMS)
def test_the_formula_gives_the_figures_of_the_first_kernels(name):
    seconds = predict.predicted_first(PROBLEM, GEMMS[name])
    assert seconds * 1e6 == pytest.approx(GEMMS[name].microseconds, rel=0.05)


def test_and_of_the_one_that_leaves_room_for_a_second_program_with_another_triton():
    seconds = predict.predicted_first(PROBLEM, FIRST_DACT_BY_3_8)
    assert seconds * 1e6 == pytest.approx(FIRST_DACT_BY_3_8.microseconds, rel=0.05)


def test_the_first_kernels_figures_add_up_to_what_was_read():
    assert sum(before.microseconds for before in FIRST.values()) == pytest.approx(2440, rel=0.005)
    assert sum(before.microseconds for before in GEMMS.values()) == 2030


def test_a_program_that_is_alone_waits_for_what_others_would_hide():
    tile = Gemm(128, 128, 64, 8, 3)
    alone, _ = program_clocks(tile, 12, 100, 3000, ctas=1)
    two, needs = program_clocks(tile, 12, 100, 3000, ctas=2)
    assert two / 2 < alone < two
    assert two / 2 >= max(needs.values())
    assert needs["cache"] == 12 * 256 * 64 * 2 / 40
    assert needs["issue"] == (12 * 100 + 3000) * 2


RECORD = {"kernel": "_k", "registers": 120, "shared": 98304, "loop": 90, "outside": 1500, "dots": []}


@pytest.fixture
def table():
    """What `bench.compile_entry` says of today's kernels, made up: every GEMM alike."""
    gemms = {call.split()[0] for call in predict.matrix.GEMMS}
    return {
        entry: [RECORD | {"dots": ["bf16"] if name in gemms else []}]
        for name, entry in predict.entries_of_the_step().items()
    }


AMOUNTS = {
    **{call.split()[0]: Work(3 * 10**8, 10**11) for call in predict.matrix.GEMMS},
    "new": Work(3 * 10**9),
    "sum_slots": Work(300),
    "group_ema": Work(3 * 10**9),
    "group_ema copies": Work(3 * 10**9),
    "cast_all": Work(3 * 10**8),
}


def test_every_gemm_of_the_step_has_a_shape_and_tiles():
    fields = {call.split()[0].removeprefix("expert_") for call in predict.matrix.GEMMS}
    assert fields == predict.SHAPES.keys()
    assert fields == set(LayerConfig._fields)


def test_the_gemms_are_predicted_by_their_tiles_and_all_else_by_bytes_and_launches(table):
    found = predict.predict(PROBLEM, AMOUNTS, table)
    assert list(found) == list(AMOUNTS)
    for name, (made, records) in found.items():
        assert bool(made.programs) == (name.removeprefix("expert_") in predict.SHAPES)
        assert 0 <= made.efficiency <= 1
        assert bool(records) == (name != "new")
    assert found["new"] == (Prediction(pytest.approx(1e-3 + 3e-6), "memory"), [])
    assert found["sum_slots"][0].seconds == pytest.approx(3e-6, rel=1e-3)
    assert found["sum_slots"][0].bound == "launch"


def test_no_gemm_is_faster_than_its_bytes():
    tile, shapes = Gemm(128, 256, 64, 8, 4), predict.SHAPES["dx"]
    usual = predict.gemm(PROBLEM, shapes, tile, RECORD, 10**6, director=False)
    slow = predict.gemm(PROBLEM, shapes, tile, RECORD, 3 * 10**9, director=False)
    assert usual.seconds < slow.seconds == pytest.approx(1e-3)
    assert slow.bound == "memory"


def test_the_directors_rows_are_programs_too():
    tile, shapes = Gemm(128, 256, 64, 8, 4), predict.SHAPES["down"]
    with_director, without = (
        predict.gemm(PROBLEM, shapes, tile, RECORD, director=director).programs for director in (True, False)
    )
    assert without == 232 * 3
    assert with_director - without == 114 * 3


def test_a_weight_gradients_programs_are_as_long_as_their_experts_rows():
    tile, shapes = Gemm(128, 256, 64, 8, 4), predict.SHAPES["wgrad"]
    uniform, two = (
        predict.gemm(PROBLEM._replace(routing=name), shapes, tile, RECORD, director=False)
        for name in ("uniform", "two")
    )
    assert uniform.programs == two.programs == 8 * 2 * (3072 // 128) * (768 // 256)
    assert two.efficiency < uniform.efficiency  # 288 long ones on 132 places, and others without a step
    padded = predict.gemm(PROBLEM, shapes, tile, RECORD, director=False, padding=128)
    assert uniform.seconds < padded.seconds < 1.03 * uniform.seconds


def test_both_weights_gradients_in_one_launch_have_one_tail():
    tile, (one, other) = Gemm(128, 256, 64, 8, 4), predict.SHAPES["wgrad"]
    both, *single = (
        predict.gemm(PROBLEM, shapes, tile, RECORD, director=False) for shapes in ((one, other), (one,), (other,))
    )
    assert both.efficiency > max(made.efficiency for made in single)
    assert both.seconds < sum(made.seconds for made in single)


def test_the_table_is_marked_a_prediction_and_sums_both(table, capsys):
    predict.report(PROBLEM, AMOUNTS, table)
    printed = capsys.readouterr().out
    assert printed.startswith("PREDICTION, nothing here was measured")
    assert predict.SOURCE in printed
    (dact,) = [line.split() for line in printed.splitlines() if line.startswith("expert_dact")]
    assert dact[1] == "480"
    assert {"154>120", "1>2", "106>90", "1>1"} <= {*dact}
    (gone,) = [line.split() for line in printed.splitlines() if line.startswith("token_sums")]
    assert gone == ["token_sums", "9", "1>"]
    before, now, on_streams, with_update, in_graph = (
        line.rpartition(": ")[2].split() for line in printed.splitlines()[-5:]
    )
    assert before[:2] == ["2438", "us"]
    assert " ".join(before).endswith("60 launches; 395 TFLOP/s, 49% of the largest GEMM's")
    launches = len(predict.matrix.GEMMS) + 2 + sum(beside.launches for beside in predict.BESIDE.values())
    assert [line[line.index("launches;") - 1] for line in (now, with_update, in_graph)] == [
        str(launches),
        str(launches),
        str(launches + 1),
    ]
    assert int(on_streams[0]) <= int(now[0])
    assert with_update == on_streams, "both updates were given the same bytes"
    assert int(in_graph[0]) - int(on_streams[0]) == pytest.approx(103, abs=1)


def test_what_is_forked_takes_no_less_than_its_gemms_share_or_its_bytes():
    def line(units, megabytes):
        made = predict.Prediction(predict.queue(units, 132) / predict.CLOCK, "cache", 1, units=tuple(units))
        return predict.Now(made.seconds, 1, "cache", megabytes, made=made)

    first, second = line([1e5] * 200, 10), line([1e5] * 200, 10)  # two rounds each alone, four of 132 together
    small = predict.Now(20e-6, 1, "memory", 60)
    lines = {"expert_dx": first, "expert_wgrad": second, "sum_slots": small}
    together = 4e5 / predict.CLOCK
    assert predict.saved_by_streams(lines) == pytest.approx(first.seconds + second.seconds + 20e-6 - together)
    lines["sum_slots"] = small._replace(megabytes=3000)
    by_bytes = 3020e6 / predict.HBM
    assert predict.saved_by_streams(lines) == pytest.approx(first.seconds + second.seconds + 20e-6 - by_bytes)
    assert predict.saved_by_streams({"expert_dx": first}) == 0


def test_what_is_copied_by_the_update_has_a_line_of_its_own():
    entries = predict.entries_of_the_step()
    assert entries["group_ema"].endswith("fp32-ieee 768x3072")
    assert entries["group_ema copies"].endswith("bf16 768x3072 copies")


def test_a_table_without_instruction_counts_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"resources-0\.0\.1\.json does not hold .* with Triton 0\.0\.1 call"):
        predict.resources("0.0.1")
    entries = {entry: [{"loop": 1}] for entry in predict.entries_of_the_step().values()}
    (tmp_path / "resources-0.0.1.json").write_text(json.dumps({"entries": entries | {"other": []}}))
    assert predict.resources("0.0.1") == entries
    entries["expert_load sm_90 bf16 768x3072"] = [{}]
    (tmp_path / "resources-0.0.1.json").write_text(json.dumps({"entries": entries}))
    with pytest.raises(SystemExit, match="does not hold"):
        predict.resources("0.0.1")


@pytest.mark.usefixtures("no_shards")
def test_what_pytorch_launches_in_the_benchs_step_is_counted(monkeypatch):
    layer = contenders.make_layer("dexcore", Shape(3, 7, 32))
    layer.pool.backend = "triton"
    step = contenders.step_of(layer, Shape(3, 7, 32), torch.bfloat16, "uniform", update=False)
    step()  # imports all that is launched
    note_launches(monkeypatch)  # as kernels, not as what interprets them
    with Calls(0) as calls:
        step()
    found = Counter(calls.names) - Counter(_to_copy=1)  # of y's gradient, on the CPU alone
    assert found.total() == predict.BESIDE["by PyTorch: sum of losses, mean"].launches, found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_page_says_what_the_committed_tables_predict(version):
    page = PAGE.read_text(encoding="utf-8")
    lines = predict.lines_of(PROBLEM, work(PROBLEM), predict.resources(version))
    at = VERSIONS.index(version)

    def numbers(cell):
        """Of this version: the last of "before, now 3.6's / 3.8's"."""
        both = re.findall(r"[\d,]+", cell.split("now")[-1])
        return int(both[min(at, len(both) - 1)].replace(",", ""))

    rows = {cells[0]: cells[1:] for cells in map(cells_of, page.splitlines()) if len(cells) == 7}
    for name in (f"expert_{name}" for name in predict.SHAPES):
        (row,) = (cells for head, cells in rows.items() if head.startswith(f"`{name}`"))
        line = lines[name]
        found = [numbers(row[column]) for column in (1, 3, 4, 5)]
        assert found == [round(line.seconds * 1e6), line.registers, line.made.ctas, line.loop], name
    step, sum_row = predict.sums(lines), rows["**sum**"]
    assert numbers(sum_row[1]) == round(step.in_turn * 1e6)
    assert int(sum_row[1].split()[-2]) == step.launches
    (others,) = (cells for head, cells in rows.items() if head.startswith("all that is no product"))
    products = sum(lines[f"expert_{name}"].seconds for name in predict.SHAPES)
    assert numbers(others[1]) == round((step.in_turn - products) * 1e6)

    def share(seconds):
        return round(100 * step_flops(REFERENCE) / seconds / predict.LARGEST_GEMM)

    both = r"([\d,]+) / ([\d,]+) µs"
    pattern = rf"it is {both}, (\d+) %.*?for them, (\d+) µs, it is {both}\. A CUDA graph .*?: {both}, (\d+) %"
    (told,) = re.findall(pattern, page, re.S)
    found = [int(number.replace(",", "")) for number in told]
    assert (found[at], found[2]) == (round(step.on_two_streams * 1e6), share(step.on_two_streams))
    assert (found[3], found[4 + at]) == (
        round((step.with_the_update - step.on_two_streams) * 1e6),
        round(step.with_the_update * 1e6),
    )
    assert (found[6 + at], found[8]) == (round(step.in_a_graph * 1e6), share(step.in_a_graph))
