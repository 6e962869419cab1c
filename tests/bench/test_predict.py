"""Predicted times: the queue, the formula against the figures that it was fitted to, and the table."""

import json

import pytest
import torch

from bench import predict
from bench.contenders import REFERENCE
from bench.kernel_work import Problem, Work
from bench.predict import FIRST, FIRST_DACT_BY_3_8, Prediction, program_clocks, programs_at_once, queue
from dexcore.kernels.configs import Gemm

PROBLEM = Problem(REFERENCE, torch.bfloat16, "uniform", "sm_90")
GEMMS = {name: before for name, before in FIRST.items() if before.tile is not None}


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
    seconds = predict.predicted_first(PROBLEM, name, GEMMS[name])
    assert seconds * 1e6 == pytest.approx(GEMMS[name].microseconds, rel=0.05)


def test_and_of_the_one_that_leaves_room_for_a_second_program_with_another_triton():
    seconds = predict.predicted_first(PROBLEM, "expert_dact", FIRST_DACT_BY_3_8)
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


@pytest.fixture
def table():
    """What `bench.compile_entry` says of today's kernels, made up: every GEMM alike."""
    record = {"kernel": "_k", "registers": 120, "shared": 98304, "loop": 90, "outside": 1500, "dots": []}
    gemms = {call.split()[0] for call in predict.matrix.GEMMS}
    return {
        entry: [record | {"dots": ["bf16"] if entry.split()[0] in gemms else []}]
        for entry in predict.entries_of_the_step()
    }


def test_every_kernel_of_the_step_is_predicted_the_gemms_by_their_tiles(table):
    found = predict.predict(PROBLEM, table)
    assert list(found) == list(predict.work(PROBLEM))
    tiled = {name for name, (made, _) in found.items() if made.programs}
    assert tiled == {name for name in found if name.replace(" ", "") in {c.split()[0] for c in predict.matrix.GEMMS}}
    for made, _ in found.values():
        assert made.seconds > 0
        assert 0 <= made.efficiency <= 1


def test_a_kernel_that_is_not_known_takes_its_bytes_and_a_launch(monkeypatch, table):
    monkeypatch.setattr(predict, "work", lambda problem: {"new": Work(3 * 10**9), "tiny": Work(300)})
    found = predict.predict(PROBLEM, table)
    assert found["new"] == (Prediction(pytest.approx(1e-3 + 3e-6), "memory"), [])
    assert found["tiny"][0].seconds == pytest.approx(3e-6, rel=1e-3)
    assert found["tiny"][0].bound == "launch"


def test_no_gemm_is_faster_than_its_bytes(table):
    record = table["expert_dx sm_90 bf16 768x3072"][0]
    tile, shape = Gemm(128, 256, 64, 8, 4), predict.SHAPES["dx"]
    usual = predict.gemm(PROBLEM, shape, tile, record, 10**6, director=False)
    slow = predict.gemm(PROBLEM, shape, tile, record, 3 * 10**9, director=False)
    assert usual.seconds < slow.seconds == pytest.approx(1e-3)
    assert slow.bound == "memory"


def test_a_weight_gradients_programs_are_as_long_as_their_experts_rows(table):
    record = table["expert_wgrad1 sm_90 bf16 768x3072"][0]
    tile, shape = Gemm(128, 256, 64, 8, 4), predict.SHAPES["wgrad1"]
    uniform, two = (
        predict.gemm(PROBLEM._replace(routing=name), shape, tile, record, 0, director=False)
        for name in ("uniform", "two")
    )
    assert uniform.programs == two.programs == 8 * (3072 // 128) * (768 // 256)
    assert two.efficiency < uniform.efficiency  # 144 long ones on 132 places


def test_the_table_is_marked_a_prediction_and_sums_both(table, capsys):
    predict.report(PROBLEM, table)
    printed = capsys.readouterr().out
    assert printed.startswith("PREDICTION, nothing here was measured")
    assert predict.SOURCE in printed
    (dact,) = [line.split() for line in printed.splitlines() if line.startswith("expert_dact")]
    assert dact[1] == "480"
    assert {"154>120", "1>2", "106>90", "1>1"} <= {*dact}
    before, now = printed.splitlines()[-2:]
    assert before.startswith("before: 2438 us without expert_load, group_ema")
    assert "394 TFLOP/s, 49%" in before or "395 TFLOP/s, 49%" in before
    assert now.startswith("now: ")


def test_a_table_without_instruction_counts_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"resources-0\.0\.1\.json does not hold .* with Triton 0\.0\.1 call"):
        predict.resources("0.0.1")
    entries = {entry: [{"loop": 1}] for entry in predict.entries_of_the_step()}
    (tmp_path / "resources-0.0.1.json").write_text(json.dumps({"entries": entries | {"other": []}}))
    assert predict.resources("0.0.1") == entries
    entries["expert_load sm_90 bf16 768x3072"] = [{}]
    (tmp_path / "resources-0.0.1.json").write_text(json.dumps({"entries": entries}))
    with pytest.raises(SystemExit, match="does not hold"):
        predict.resources("0.0.1")
