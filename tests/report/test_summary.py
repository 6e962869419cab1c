import json

import numpy as np
import pytest
from made_runs import make_analysis, make_evaluation, make_numbers, one_hot

from dexcore.report import run_files, summarize
from dexcore.report.comparison import Comparison
from dexcore.report.history import History, SimilarityCourse
from dexcore.report.numbers import Step0


def line_of(lines, start):
    (line,) = [line for line in lines if line.strip().startswith(start)]
    return line.split()


def test_the_lines_say_what_was_measured():
    modality = np.repeat([0, 1, 2], 4)
    evaluation = make_evaluation(
        modality, gates=[one_hot(modality, 3)], squared_error=np.where(modality == 1, 0.25, 0.5)
    )
    lines = summarize(make_numbers(evaluation)).lines()
    assert line_of(lines, "CT") == ["CT", "0.500", "3", "0.500", "1"]
    assert line_of(lines, "MR") == ["MR", "0.750", "3", "0.750", "1"]
    assert line_of(lines, "Photo") == ["Photo", "(synthetic)", "0.500", "3", "0.500", "1"]
    assert line_of(lines, "mean over modalities ")[-4:] == ["0.583", "9", "0.583", "3"]
    assert line_of(lines, "mean over modalities, real images")[-4:] == ["0.625", "6", "0.625", "2"]
    assert line_of(lines, "1 ")[:3] == ["1", "3", "1.000"]


def test_what_holds_no_numbers_of_a_run_is_refused_by_name():
    with pytest.raises(TypeError, match=r"numbers must be a RunNumbers, .* got 'runs/pretrain'"):
        summarize("runs/pretrain")


def test_lines_are_aligned_and_fit_100_columns():
    rng = np.random.default_rng(0)
    gates = [rng.dirichlet(np.ones(experts), 8) for experts in (64, 4)]
    lines = summarize(make_numbers(make_evaluation(gates=gates))).lines()
    assert max(len(line) for line in lines) <= 100
    table = [line for line in lines if line.startswith("  ") and line[2:4] in ("CT", "MR", "Ph", "me", "al")]
    assert len({len(line) for line in table}) == 1
    assert len(table) == 6


def test_real_images_alone_need_no_second_mean():
    lines = summarize(make_numbers(make_evaluation([0, 0, 1, 1]))).lines()
    assert not any("real images" in line and "mean" in line for line in lines)
    assert not any("synthetic" in line for line in lines)


def test_modalities_without_held_out_images_are_named():
    evaluation = make_evaluation([0, 0, 1], heldout=[False, True, False])
    lines = summarize(make_numbers(evaluation)).lines()
    assert line_of(lines, "MR") == ["MR", "0.500", "1", "-", "-"]
    assert any("held out: mean over 1 modalities; none held out of MR" in line for line in lines)


def test_no_held_out_images_are_said_to_be_none():
    lines = summarize(make_numbers(make_evaluation([0, 1], heldout=[False, False]))).lines()
    assert any("no image was held out" in line for line in lines)


def test_one_modality_and_no_blocks_are_said():
    assert any(
        "one modality" in line
        for line in summarize(make_numbers(make_evaluation([0], gates=[np.ones((1, 2))]))).lines()
    )
    assert any("no DEX block" in line for line in summarize(make_numbers(make_evaluation())).lines())


def test_files_stand_at_the_end(tmp_path):
    lines = summarize(make_numbers(make_evaluation()), run_files(tmp_path)).lines()
    assert line_of(lines, "report") == ["report", str(tmp_path / "report.html")]
    assert line_of(lines, "model") == ["model", str(tmp_path / "model")]


def test_starving_experts_are_named_in_lines_that_fit():
    loads = tuple(np.tile(np.where(np.arange(16) < starving, 0.0, 1.0), (5, 1)) for starving in (0, 3, 15, 15, 15))
    shares = tuple(load / load.sum(1, keepdims=True) for load in loads)
    history = History(np.arange(5), {}, shares, np.zeros(5, bool))
    summary = summarize(make_numbers(make_evaluation(), history=history))
    assert summary.starving().startswith("48 of 80 (block 2: 1, 2, 3; block 3: 1, 2, 3, 4")
    assert max(map(len, summary.lines())) <= 100
    assert line_of(summarize(make_numbers(make_evaluation(gates=[np.ones((8, 2))]))).lines(), "Starving")[-1] == "none"


def test_skipped_steps_are_counted_where_there_are_some(tmp_path):
    def measured(skipped):
        history = History(np.arange(5), {}, (), np.arange(5) < skipped)
        return summarize(make_numbers(make_evaluation(), history=history))

    line = "Skipped steps (loss or gradient not finite): 2 of 5"
    assert line in measured(2).lines()
    assert not any("kipped" in line for line in measured(0).lines())
    for skipped in (2, 0):
        measured(skipped).save(tmp_path / "summary.json")
        assert json.loads((tmp_path / "summary.json").read_text())["steps"] == {"done": 5, "skipped": skipped}


def test_the_json_holds_the_same_numbers_and_null_for_none(tmp_path):
    modality = np.repeat([0, 1], 4)
    evaluation = make_evaluation(modality, gates=[one_hot(modality, 2), np.ones((8, 1))], heldout=np.zeros(8, bool))
    summary = summarize(make_numbers(evaluation), {"report": "a/report.html"})
    summary.save(tmp_path / "summary.json")
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["variance_explained"]["training"]["mean"] == {"value": 0.5, "images": 8, "modalities": 2}
    assert stored["variance_explained"]["training"]["modalities"][1]["modality"] == "MR"
    assert stored["variance_explained"]["heldout"]["mean"] == {"value": None, "images": 0, "modalities": 0}
    first, second = stored["specialization"]
    assert first["nmi"] == 1.0
    assert first["p_value"] == summary.blocks[0].p_value
    assert (second["block"], second["experts"], second["nmi"]) == (2, 1, None)
    assert stored["load"] == [
        {"block": 1, "share": [1, 1], "starving": []},
        {"block": 2, "share": [1], "starving": []},
    ]
    assert [one["mode"] for one in stored["nearest_neighbors"]] == ["experts", "director"]
    assert [one["part"] for one in stored["gradient_cosines"]] == ["shared weights", "experts"]
    assert [one["mean"] for one in stored["expert_similarity"]] == [pytest.approx(summary.likeness[0].mean), None]
    assert stored["files"] == {"report": "a/report.html"}


MODALITY = np.repeat([0, 1, 2], 30)


def trained_and_before(learned=0.4):
    """A run whose experts came to follow modalities, and explained 0.4 more; its neighbors tell what they told."""
    rng = np.random.default_rng(0)
    before = make_evaluation(MODALITY, gates=[one_hot(rng.integers(0, 3, 90), 3)], squared_error=1 + rng.random(90) / 9)
    trained = make_evaluation(
        MODALITY, gates=[one_hot(MODALITY, 3)], squared_error=before.squared_error - learned, heldout=before.heldout
    )
    analysis = make_analysis(before, [3])
    return make_numbers(trained, analysis=analysis, step0=Step0(before, analysis)), before, analysis


def test_every_number_stands_beside_that_of_step_0():
    numbers, *_ = trained_and_before()
    course = SimilarityCourse(np.array([0, 4]), (), np.array([[0.2, 0.4], [0.1, 0.1]]), "kd")
    numbers = make_numbers(
        numbers.evaluation, analysis=numbers.analysis, step0=numbers.step0, similarity=course, config={}
    )
    lines = summarize(numbers).lines()
    value, step0, images, *_ = line_of(lines, "CT")[1:]
    assert float(value) - float(step0) == pytest.approx(0.4, abs=0.002)
    assert images == "29"
    block = line_of(lines, "1 ")
    assert block[2] == "1.000"
    assert float(block[6]) < 0.1  # step 0's
    assert float(block[8]) > 0.7
    text = "\n".join(lines)
    assert "minus the teacher's entropy, 0 is agreement: 0.1000 (step 0: 0.3000)" in text
    assert text.count(" (step 0: ") == 1 + 1 + 1 + 4  # the table's foot, alignment, starving, two cosines of two parts
    assert text.count(", step 0 ") == 6  # what neighbors tell, in two modes
    assert max(map(len, lines)) <= 100


def test_the_verdict_is_about_the_difference():
    numbers, before, analysis = trained_and_before()
    verdict = summarize(numbers).verdict()
    assert "more variance is explained on training images (+0.40 [" in verdict
    assert "experts follow modalities more in 1 of 1 blocks" in verdict
    assert "neighbors" not in verdict
    same = make_numbers(before, analysis=analysis, step0=Step0(before, analysis))
    assert summarize(same).verdict().endswith("no difference is shown: nothing is claimed.")
    back = make_numbers(before, analysis=analysis, step0=Step0(numbers.evaluation, analysis))
    verdict = summarize(back).verdict()
    assert "less variance is explained" in verdict
    assert "experts follow modalities less in 1 of 1 blocks" in verdict


def test_an_untrained_router_that_follows_modalities_is_no_finding():
    evaluation = make_evaluation(MODALITY, gates=[one_hot(MODALITY, 3)])
    analysis = make_analysis(evaluation, [3])
    summary = summarize(make_numbers(evaluation, analysis=analysis, step0=Step0(evaluation, analysis)))
    assert summary.blocks[0].p_value < 0.01
    assert "nothing is claimed" in summary.verdict()


def test_where_step_0_was_not_measured_nothing_is_said_of_training():
    numbers, *_ = trained_and_before()
    lines = summarize(make_numbers(numbers.evaluation, analysis=numbers.analysis)).lines()
    assert "What training changed cannot be said: step 0 was not measured." in lines
    assert any(line.strip() == "step 0: not measured" for line in lines)
    assert not any("change" in line.split() for line in lines)


def test_the_json_holds_step_0_and_the_change():
    numbers, *_ = trained_and_before()
    found = json.loads(json.dumps(summarize(numbers).as_dict(), allow_nan=False))
    assert found["step_0"]["specialization"][0]["nmi"] < 0.1
    assert found["step_0"]["variance_explained"].keys() == found["variance_explained"].keys()
    change = found["change_since_step_0"]
    assert change["variance_explained_mean"]["training"]["verdict"] == "rose"
    assert change["nmi_minus_null"][0]["low"] < change["nmi_minus_null"][0]["difference"]
    alone = summarize(make_numbers(numbers.evaluation)).as_dict()
    assert (alone["step_0"], alone["change_since_step_0"]) == (None, None)
    assert alone["step_0_missing"] == "not measured"


def test_what_oracle_routing_was_told_is_no_verdict_of_its_features():
    rng = np.random.default_rng(0)
    evaluation = make_evaluation(modality=np.repeat([0, 1, 2], 20))
    alike = rng.normal(size=(2, 60, 6))
    before = make_analysis(evaluation, features=alike)
    after = make_analysis(evaluation, features=alike + 100 * np.eye(6)[evaluation.modality])
    told = {
        mlp: summarize(
            make_numbers(
                evaluation, analysis=after, step0=Step0(evaluation, before), comparison=Comparison(mlp, "", 1, 1, 1)
            )
        ).verdict()
        for mlp in ("dex", "oracle-routing")
    }
    better = "neighbors ({} mode) tell the modality better"
    assert better.format("experts") in told["dex"]
    assert better.format("experts") not in told["oracle-routing"]
    assert better.format("director") in told["oracle-routing"]
