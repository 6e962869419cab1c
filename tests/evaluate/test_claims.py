"""Numbers of models, the effects that claims are made of, and how they are judged."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from planted import planted, write_stripes

from dexcore.data.modality import Modality
from dexcore.evaluate.claims import (
    Asked,
    Measured,
    Number,
    findings,
    mean_number,
    measured,
    of_model,
    remedied,
    smallest_effects,
)
from dexcore.evaluate.claims.known import CLAIMS
from dexcore.evaluate.claims.of_modules import module_numbers
from dexcore.evaluate.claims.of_run import routing_number, variance_number
from dexcore.evaluate.claims.of_tasks import across_number, task_numbers
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.measures.bootstrap import mean_statistic
from dexcore.measures.shared_space import Points
from dexcore.measures.verdicts import Verdict
from dexcore.nn import RoutingRule, set_rule
from dexcore.report.claims import Claim, Shown
from dexcore.report.evaluation import Evaluation, Examples

IMAGES, EXPERTS = 40, 4  # a modality
MODALITY = np.repeat(np.arange(4), IMAGES)


def evaluation(gates, heldout=True, **changes):
    """Four modalities, every image a group of its own."""
    n = len(MODALITY)
    none = np.zeros((0, 8, 8, 3))
    fields = {
        "heldout": np.full(n, heldout),
        "synthetic": np.zeros(n, bool),
        "group": [str(index) for index in range(n)],
        "sample_id": np.arange(n),
        "squared_error": np.full(n, 0.5),
        "total": np.ones(n),
    }
    examples = Examples([], [], [], none, np.zeros((0, 8, 8), bool), none, none)
    return Evaluation(modality_names="abcd", modality=MODALITY, gates=gates, examples=examples, **fields | changes)


def one_hot(expert_n):
    return np.eye(EXPERTS)[expert_n]


def test_routing_is_one_where_each_modality_has_an_expert_and_nothing_where_chance_chooses():
    random = np.random.default_rng(0)
    told = routing_number(evaluation([one_hot(MODALITY)]))
    blind = routing_number(evaluation([one_hot(random.integers(0, EXPERTS, len(MODALITY)))]))
    half = routing_number(evaluation([one_hot(MODALITY), np.full((len(MODALITY), EXPERTS), 1 / EXPERTS)]))
    assert told.value == pytest.approx(1, abs=0.05)
    assert abs(blind.value) < 0.04
    assert half.value == pytest.approx(told.value / 2, abs=0.03)
    assert told.drawn_d.std() < blind.drawn_d.std() < 0.05
    assert (told.groups, len(told.drawn_d)) == (len(MODALITY), 1000)


def test_slices_of_a_volume_are_one_case_of_routing():
    # A volume goes to one expert, whatever its modality: each slice for itself would look like a finding.
    random, group = np.random.default_rng(1), np.arange(len(MODALITY)) // 5
    values = {"volumes": [], "slices": []}
    for _ in range(10):
        gates = [one_hot(random.integers(0, EXPERTS, len(MODALITY) // 5)[group])]
        values["volumes"].append(routing_number(evaluation(gates, group=group.astype(str))).value)
        values["slices"].append(routing_number(evaluation(gates)).value)
    assert abs(np.mean(values["volumes"])) < 0.04
    assert np.mean(values["slices"]) > 0.08


def test_only_images_that_training_never_saw_count():
    heldout = np.arange(len(MODALITY)) % 2 == 0
    wrong = np.where(heldout, MODALITY, (MODALITY + 1) % 4)
    assert routing_number(evaluation([one_hot(wrong)], heldout)).value == pytest.approx(1, abs=0.1)
    error = np.where(heldout, 0.25, 10.0)
    assert variance_number(evaluation([], heldout, squared_error=error)).value == pytest.approx(0.75)
    with pytest.raises(ValueError, match="holds no image out"):
        variance_number(evaluation([], False))


def test_variance_is_a_mean_over_modalities_of_ratios_of_sums():
    error = np.where(MODALITY == 0, 0.0, 1.0)
    total = np.where(MODALITY == 0, 1.0, 2.0)
    found = variance_number(evaluation([], squared_error=error, total=total))
    assert found.value == pytest.approx((1 + 3 * 0.5) / 4)


def test_a_class_is_found_across_modalities_by_what_they_share_alone():
    random = np.random.default_rng(2)
    label, modality = np.arange(240) % 3, np.arange(240) // 3 % 4
    code, place = random.normal(size=(3, 8)), 20 * random.normal(size=(4, 8))
    own_code = random.normal(size=(4, 3, 8))
    noise = 0.1 * random.normal(size=(240, 8))
    test = np.arange(240) % 24 < 12

    def across(features):
        points = Points(features, modality, label, np.arange(240))
        return across_number(points.of(test), points.of(~test))

    shared = across(code[label] + place[modality] + noise)
    apart = across(own_code[modality, label] + place[modality] + noise)
    blind = across(place[modality] + random.normal(size=(240, 8)))
    assert shared.value > 0.6
    assert apart.value < shared.value - 0.2
    assert abs(blind.value) < 0.03
    assert shared.groups == 120


def planted_numbers(folder, reads, seeds):
    images = write_stripes(folder / "store", cases=108, slices=1, seed=1)
    found = {}
    for seed in seeds:
        planted(images, reads, seed=seed).save_pretrained(folder / f"{reads} {seed}")
        found["dex", seed] = module_numbers(folder / f"{reads} {seed}", folder / "store", 64)
    return found


@pytest.mark.parametrize(("reads", "there"), [("modality", True), ("tag", False)])
def test_modules_that_are_there_are_found_and_others_are_not(tmp_path, reads, there):
    (found,) = planted_numbers(tmp_path, reads, [1]).values()
    for name in ("specificity", "saved loss"):
        number = found[name]
        assert (number.value > 3 * number.drawn_d.std()) == there
        assert number.groups == 36


@pytest.mark.slow
@pytest.mark.parametrize(("reads", "there"), [("modality", True), ("tag", False)])
def test_claims_of_modules_are_supported_where_they_are_there_alone(tmp_path, reads, there):
    ours = [one for one in CLAIMS if one.number in ("specificity", "saved loss")]
    found = findings(planted_numbers(tmp_path, reads, range(6)), ours, {})
    assert [one.claim.name for one in found] == ["specialization", "extraction"]
    assert [one.judged.verdict is Verdict.SUPPORTED for one in found] == [there, there]


@pytest.mark.slow
def test_probes_of_all_tasks_are_paired_cases_and_say_what_they_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("DEXCORE_BACKEND", "eager")  # no kernel is interpreted
    tasks = synthetic_tasks(
        tmp_path / "tasks", 60, 32, modalities=(Modality.PET, Modality.OCT), fractions=(0.4, 0.2, 0.4)
    )
    images = write_stripes(tmp_path / "store")
    found = {}
    for name, rule in (("dex", None), ("oracle", RoutingRule("oracle", modalities=("CT",)))):
        model = planted(images, "modality")
        set_rule(model, rule)
        model.save_pretrained(tmp_path / name)
        found[name] = task_numbers(tmp_path / name, tasks, tmp_path / f"{name} probes", tmp_path / "cache", name)
    dex, oracle = found["dex"].numbers, found["oracle"]
    assert {
        "linear probe",
        "k-NN",
        "linear probe, findings",
        "across modalities",
        "across modalities, director",
    } <= set(dex)
    assert dex["linear probe"].value == dex["linear probe, findings"].value
    assert dex["linear probe"].groups == len(tasks[1].split("test"))
    assert dex["across modalities"].groups == 12  # of each class and modality as many test images
    assert any("few cases" in flag for flag in found["dex"].flags)
    assert oracle.numbers == {}
    assert "findings is left out" in oracle.flags[0]
    assert "PET" in oracle.flags[0]


def asked(controls=None, **changes):
    claim = Claim("c", "A claim", "Said.", "Somebody", "A number.", "Nothing.", margin=0.05)
    fields = {"arm": "dex", "number": "score", "against_arm": "dense-wide", "controls": controls or {}}
    return Asked(claim, **fields | changes)


def number(value, cases=0.0):
    drawn = value + cases * np.random.default_rng(0).normal(size=300)
    return Number(value, drawn, 80)


def trained(**values_of_arm):
    return {
        (arm.replace("_", "-"), seed): {"score": number(value)}
        for arm, values in values_of_arm.items()
        for seed, value in enumerate(values)
    }


def test_an_effect_is_a_difference_within_a_seed():
    # Seeds weigh far more than arms: unpaired, nothing could be seen.
    seeds = np.array([0.1, 0.9, 0.4, 0.7, 0.2])
    found = measured(trained(dex=seeds + 0.1, dense_wide=seeds), asked().terms())
    assert found.value == pytest.approx(0.1)
    assert found.deviation_seeds == pytest.approx(0, abs=1e-12)
    assert measured(trained(dex=seeds), asked().terms()) is None
    only_common = measured(trained(dex=seeds + 0.1, dense_wide=seeds[:3]), asked().terms())
    assert len(only_common.of_seeds) == 3


def test_cases_are_paired_too_and_other_cases_are_refused():
    both = {("dex", 0): {"score": number(0.6, 0.1)}, ("dense-wide", 0): {"score": number(0.5, 0.1)}}
    assert measured(both, asked().terms()).deviation_cases == pytest.approx(0, abs=1e-12)
    both["dense-wide", 0] = {"score": Number(0.5, np.zeros(300), 79)}
    with pytest.raises(ValueError, match="measured on different cases"):
        measured(both, asked().terms())


def test_controls_are_judged_by_the_same_rule_and_missing_ones_are_left_out():
    alone = asked({"oracle": Verdict.SUPPORTED, "fixed": Verdict.REFUTED, "absent": Verdict.REFUTED}, against_arm="")
    around = np.linspace(-0.01, 0.01, 5)
    (found,) = findings(trained(dex=0.3 + around, oracle=0.9 + around, fixed=around), [alone], {"c": Shown(0.02)})
    assert found.judged.verdict is Verdict.SUPPORTED
    assert [(one.label, one.judged.verdict, one.passed) for one in found.controls] == [
        ("oracle", Verdict.SUPPORTED, True),
        ("fixed", Verdict.REFUTED, True),
    ]
    (found,) = findings(trained(dex=0.3 + around, oracle=around, fixed=0.4 + around), [alone], {})
    assert [one.passed for one in found.controls] == [False, False]


def test_a_control_can_come_out_otherwise():
    # What routes by a rule is the same before training and after: its gain is 0 whatever the instrument does.
    assert not any(one.controls for one in CLAIMS if one.against_number == "routing at step 0")
    assert not any(one.controls for one in CLAIMS if one.against_arm)


def test_what_a_number_is_held_against_stands_beside_its_verdict():
    around = np.linspace(-0.01, 0.01, 5)
    one = asked(against_arm="", minus=(("dense-wide", "score"),))
    (found,) = findings(trained(dex=0.3 + around, dense_wide=0.3 + around), [one], {})
    assert found.judged.verdict is Verdict.SUPPORTED
    assert [(told.label, told.effect.value) for told in found.numbers] == [
        ("dex, minus dense-wide, score", pytest.approx(0))
    ]


def test_few_cases_of_one_modality_are_said_and_lend_their_freedom():
    label = np.repeat([0, 1], [2, 80])
    value = np.random.default_rng(3).normal(size=82) * np.where(label == 0, 1.0, 0.1)

    def mean(weight_dg):
        return np.mean([weight_dg[:, label == m] @ value[label == m] / (label == m).sum() for m in (0, 1)], axis=0)

    few = Number.of(mean, label)
    assert (few.groups, few.fewest) == (82, 2)
    numbers = {("dex", seed): {"score": few} for seed in range(5)}
    (found,) = findings(numbers, [asked(against_arm="")], {})
    assert any("A modality or class has 2 cases" in note for note in found.notes)
    assert found.effect.freedom_cases == pytest.approx(1, abs=0.3)
    many = Number.of(mean_statistic(value[:, None]), np.zeros(82, np.int64))
    (found,) = findings({("dex", seed): {"score": many} for seed in range(5)}, [asked(against_arm="")], {})
    assert not any("modality or class" in note for note in found.notes)


def test_what_two_arms_have_in_common_lends_their_difference_no_freedom():
    # A large modality that varies much, in both alike, and three cases that alone make them differ.
    label = np.repeat([0, 1], [120, 3])
    draws = np.random.default_rng(1)
    alike = draws.normal(size=123) * np.where(label == 0, 5.0, 0.1)
    differs = draws.normal(size=123) * np.where(label == 0, 0.01, 1.0)
    numbers = {}
    for seed in range(3):
        for arm, added in (("dex", differs), ("dense-wide", 0.0)):
            values = alike + added + 1e-3 * draws.normal()
            columns = np.where(label[:, None] == [0, 1], values[:, None], np.nan)
            numbers[arm, seed] = {"score": Number.of(mean_statistic(columns), label)}
    assert measured(numbers, asked().terms()).freedom_cases == pytest.approx(2, abs=0.1)
    assert measured(numbers, [(1.0, "dense-wide", "score")]).freedom_cases > 100


def test_a_number_of_many_cases_changes_with_each():
    value = np.random.default_rng(0).normal(size=250)
    found = Number.of(mean_statistic(value[:, None]), np.zeros(250, np.int64))
    assert found.changed_g == pytest.approx((value - value.mean()) / 251)


def test_a_changed_dex_takes_the_place_of_dex_and_its_gain_is_within_a_seed():
    seeds = np.array([0.1, 0.9, 0.4])
    models = trained(dex=seeds, dex_wider=seeds + 0.03, dense_wide=seeds + 0.01)
    other = asked(arm="dense-wide", against_arm="dex")
    about_dense = asked(arm="dense-wide", against_arm="")
    (found,) = remedied(models, {"dex-wider": "model.mlp_ratio 8"}, "dex", [asked(), other, about_dense])
    assert (found.name, found.changes) == ("dex-wider", "model.mlp_ratio 8")
    told = [(one.effect.value, one.gain.value) for one in found.claims]
    assert told == [pytest.approx((0.02, 0.03)), pytest.approx((-0.02, -0.03))]
    assert found.claims[0].gain.deviation_seeds == pytest.approx(0, abs=1e-12)


def test_what_is_missing_is_said():
    (found,) = findings(trained(dex=[0.5, 0.6]), [asked()], {})
    assert (found.verdict, found.effect) == ("not measured", None)
    assert "missing" in found.notes[0]
    (found,) = findings(trained(dex=[0.5, 0.6], dense_wide=[0.4, 0.5]), [asked()], {})
    assert any("Few seeds: 2" in note for note in found.notes)


def test_a_pilot_says_what_more_seeds_will_show():
    pilot = trained(dex=[0.50, 0.52, 0.51], dense_wide=[0.5, 0.5, 0.5])
    five, ten = (smallest_effects(pilot, [asked()], seeds)["c"].smallest for seeds in (5, 10))
    assert 0 < ten < five
    assert smallest_effects(pilot, [asked()] * 5, 5)["c"].smallest > five
    assert math.isnan(smallest_effects({}, [asked()], 5)["c"].smallest)


def test_runs_that_spread_more_than_their_pilots_are_said():
    runs = trained(dex=0.5 + np.array([0.0, 0.05, -0.05, 0.02, 0.01]), dense_wide=[0.5] * 5)
    notes = [findings(runs, [asked()], {"c": Shown(least)})[0].notes for least in (0.02, 0.5)]
    assert [any("spread more than their pilots" in note for note in own) for own in notes] == [True, False]


def test_numbers_are_kept_with_what_must_be_known_and_made_again_where_damaged(tmp_path, monkeypatch):
    calls = []

    def tasks_measured(*_):
        calls.append(1)
        return Measured({"linear probe, a/b": number(0.7, 0.1)}, ("few cases",))

    monkeypatch.setattr(of_model, "task_numbers", tasks_measured)
    monkeypatch.setattr(of_model, "run_numbers", lambda _: {"routing": number(0.2)})
    monkeypatch.setattr(of_model, "module_numbers", lambda *_: {})
    given = (tmp_path / "run", tmp_path, "m", tmp_path / "store", 4, [], tmp_path)
    found = [of_model.measure(*given) for _ in range(2)][1]
    assert (len(calls), found.flags) == (1, ("few cases",))
    assert found.numbers["linear probe, a/b"].drawn_d.tolist() == number(0.7, 0.1).drawn_d.tolist()
    assert found.numbers["linear probe, a/b"].fewest == 80
    (path,) = tmp_path.glob("numbers-tasks-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    of_model.measure(*given)
    assert len(calls) == 2
    monkeypatch.setattr(of_model, "content_of", lambda task: task.images)
    generated = SimpleNamespace(fingerprint="f", images="of these pixels")
    beside = of_model.measure(*given, generated=[generated]).numbers
    assert len(calls) == 3
    assert {"linear probe, a/b", "linear probe, a/b, generated"} <= set(beside)
    generated.images = "of others"
    of_model.measure(*given, generated=[generated])
    assert len(calls) == 4


def test_a_mean_over_tasks_keeps_the_fewest_cases():
    found = mean_number([Number(0.4, np.full(5, 0.4), 30), Number(0.8, np.full(5, 0.9), 60)])
    assert (found.value, found.groups, found.drawn_d[0]) == (pytest.approx(0.6), 30, pytest.approx(0.65))


def test_every_claim_is_refuted_by_an_effect_of_nothing_and_supported_by_a_large_one():
    names = [one.claim.name for one in CLAIMS]
    assert len(set(names)) == len(names)
    spread = 0.02 * np.array([-1, -0.5, 0, 0.5, 1])
    for one in CLAIMS:
        for size, verdict in ((0.0, Verdict.REFUTED), (3.0, Verdict.SUPPORTED)):
            models = {}
            for sign, arm, number_name in one.terms():
                for seed, moved in enumerate(one.claim.margin * (size + spread) * (sign > 0)):
                    models.setdefault((arm, seed), {})[number_name] = number(0.5 + moved)
            if not (one.against_arm or one.against_number):
                models = {key: {n: number(v.value - 0.5) for n, v in own.items()} for key, own in models.items()}
            (found,) = findings(models, [one], {})
            assert found.judged.verdict is verdict, one.claim.name
