"""Probes of classification: what they choose, on which labels, and what they refuse."""

import json
import warnings
from functools import partial

import numpy as np
import pytest
from made_tasks import write

from dexcore.evaluate.probes import few_shot, knn_probe, linear_probe
from dexcore.evaluate.probes.linear import fit_linear
from dexcore.evaluate.scores import score
from dexcore.evaluate.tasks import Task, TaskError, TestLabelsError

GRID = (1e-4, 1e-2, 1.0)
PROBES = [knn_probe, partial(linear_probe, costs=GRID)]


def a_task(folder, splits, classes=2, images=1, seed=0, name="made", **keys):
    """So many cases of each split, of classes in turn; images need not exist: nothing here opens them."""
    rows = []
    for split, cases in splits.items():
        labels = np.arange(cases) % classes
        np.random.default_rng(seed).shuffle(labels)
        for case, label in enumerate(labels):
            for image in range(images):
                where = f"{split}{case:04}"
                rows.append({"image": f"{where}-{image}.png", "label": f"c{label}", "split": split, "case": where})
    names = [f"c{number}" for number in range(classes)]
    return Task.open(write(folder, rows, name=name, classes=names, **keys))


def told(task, width=8, grain=2.0, seed=0):
    """Features that tell the class, with noise: by layer."""
    label = task.reference().labels(task.rows)
    random = np.random.default_rng(seed)
    centers = random.normal(size=(len(task.classes), width))
    target = label if label.ndim == 2 else np.eye(len(task.classes))[label]
    features = grain * target @ centers + random.normal(size=(len(label), width))
    return {"cls": random.normal(size=features.shape), "mean": features}


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_chooses_the_layer_that_tells_the_class_and_finds_it_on_test(tmp_path, probe):
    task = a_task(tmp_path, {"train": 60, "val": 30, "test": 60}, classes=3)
    found = probe(task, told(task, grain=4), "made")
    assert found.choice["layer"] == "mean"
    assert found.choice["chosen_on"] == "val"
    assert score(found.predictions, task, draws=10).primary.value > 0.9
    json.dumps(found.choice)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("val", [0, 20])
def test_shuffling_test_labels_changes_no_byte_of_what_was_chosen_or_predicted(tmp_path, probe, val):
    splits = {"train": 40, "val": val, "test": 40}
    task = a_task(tmp_path / "a", splits)
    layers = told(task, grain=0.7)
    before = probe(task, layers, "made")
    table = task.spec.table
    lines = table.read_text().splitlines()
    at_test = [number for number, line in enumerate(lines) if ",test," in line]
    words = [lines[number].split(",")[1] for number in at_test]
    for number, word in zip(at_test, reversed(words), strict=True):
        cells = lines[number].split(",")
        lines[number] = ",".join([cells[0], word, *cells[2:]])
    table.write_text("\n".join(lines) + "\n")
    shuffled = Task.open(task.spec.path)
    assert shuffled.fingerprint != task.fingerprint
    after = probe(shuffled, layers, "made")
    assert json.dumps(before.choice) == json.dumps(after.choice)
    assert before.predictions.values.tobytes() == after.predictions.values.tobytes()


class Watched(Task):
    """Its test labels raise: nothing but the fingerprint may read them."""

    def reference(self):
        raise TestLabelsError("read before score")


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_reads_no_label_of_test(tmp_path, probe):
    task = a_task(tmp_path, {"train": 20, "val": 10, "test": 10})
    layers, fingerprint = told(task), task.fingerprint
    watched = Watched.open(task.spec.path)
    watched.__dict__["fingerprint"] = fingerprint
    assert len(probe(watched, layers).predictions) == 10
    assert few_shot(watched, layers, count=2, shots=(1,)).predicted.shape == (4, 2, 10)


@pytest.mark.parametrize("probe", PROBES)
def test_the_order_of_the_table_changes_no_byte(tmp_path, probe):
    task = a_task(tmp_path, {"train": 30, "val": 10, "test": 12})
    layers = told(task)
    order = np.random.default_rng(1).permutation(len(task.rows))
    head, *lines = task.spec.table.read_text().splitlines()
    task.spec.table.write_text("\n".join([head, *(lines[number] for number in order)]) + "\n")
    moved = probe(Task.open(task.spec.path), {name: of_layer[order] for name, of_layer in layers.items()})
    found = probe(task, layers)
    assert found.predictions.image == moved.predictions.image
    assert found.predictions.values.tobytes() == moved.predictions.values.tobytes()
    assert found.choice == moved.choice


def test_nearest_neighbors_vote_as_they_are_counted_by_hand(tmp_path):
    task = a_task(tmp_path, {"train": 40, "val": 12, "test": 10}, classes=3)
    layers = {"only": told(task)["mean"]}
    found = knn_probe(task, layers)
    rows = {name: [n for n, row in enumerate(task.rows) if row.split == name] for name in ("train", "val", "test")}
    features = layers["only"] - layers["only"][rows["train"]].mean(axis=0)
    known = rows["train"] + rows["val"]  # as the linear probe's last fit
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    label = task.reference().labels(task.rows)
    for row, probability in zip(rows["test"], found.predictions.values, strict=True):
        cosine = features[known] @ features[row]
        order = np.argsort(-cosine)[: found.choice["k"]]
        weight = np.exp(cosine[order] / 0.07) if found.choice["votes"] == "weighted" else 1 + 1e-3 * 0.5 ** np.arange(5)
        votes = np.bincount(label[known][order], weight, 3)
        np.testing.assert_allclose(probability, votes / votes.sum(), rtol=1e-9)


def test_without_val_neighbors_are_asked_of_other_cases(tmp_path):
    # Images of a case are alike and say nothing of their class: its own would be right every time.
    task = a_task(tmp_path, {"train": 40, "test": 10}, images=4)
    case = np.array([int(row.case[-4:]) + 100 * (row.split == "test") for row in task.rows])
    features = np.random.default_rng(0).normal(size=(200, 16))[case] + 0.001 * np.arange(len(case))[:, None] % 4
    found = knn_probe(task, {"only": features})
    assert found.choice["chosen_on"].startswith("train")
    assert found.choice["value"] < 0.75


def test_the_linear_probe_is_scikit_learns_on_features_standardized_by_train(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    task = a_task(tmp_path, {"train": 50, "val": 20, "test": 30}, classes=3)
    x = 5 + 3 * told(task)["mean"]
    found = linear_probe(task, {"only": x}, costs=(0.1,))
    part = {name: [n for n, row in enumerate(task.rows) if row.split == name] for name in ("train", "val", "test")}
    scaler = StandardScaler().fit(x[part["train"]])
    known = part["train"] + part["val"]
    model = LogisticRegression(C=0.1, max_iter=1000).fit(
        scaler.transform(x[known]), task.labels([task.rows[n] for n in known])
    )
    expected = model.predict_proba(scaler.transform(x[part["test"]]))
    np.testing.assert_allclose(found.predictions.values, expected, rtol=1e-3, atol=1e-4)
    assert found.choice["converged"]


def test_a_fit_that_begins_where_the_last_c_ended_ends_where_one_from_zero_does():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    label = random.integers(0, 3, 150)
    x = (random.normal(size=(150, 24)) + 0.3 * random.normal(size=(3, 24))[label]) * np.exp(-np.arange(24) / 8)
    costs = np.logspace(-6, 2, 9)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    for cost, fitted in zip(costs, fit_linear(x, label, 3, costs), strict=True):
        alone = LogisticRegression(C=cost, tol=1e-10, max_iter=10_000).fit(scaled, label)
        np.testing.assert_allclose(fitted.probability(x), alone.predict_proba(scaled), atol=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_class_without_training_images_is_never_predicted_and_told(tmp_path, classes):
    rows = [
        {
            "image": f"{split}{n}.png",
            "label": f"c{n % (classes - (split == 'train'))}",
            "split": split,
            "case": f"{split}{n}",
        }
        for split in ("train", "test")
        for n in range(12)
    ]
    task = Task.open(write(tmp_path, rows, classes=[f"c{n}" for n in range(classes)]))
    for probe in PROBES:
        found = probe(task, told(task))
        assert (found.predictions.values[:, -1] == 0).all()
        assert np.allclose(found.predictions.values.sum(axis=1), 1)
        assert f"no training image of c{classes - 1}: never predicted" in found.flags


def test_an_image_of_several_classes_has_a_regression_for_each(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 60), ("test", 40)):
        for number in range(count):
            word = ";".join(f"c{c}" for c in range(3) if random.random() < 0.4)
            rows.append({"image": f"{split}{number}.png", "label": word, "split": split, "case": f"{split}{number}"})
    task = Task.open(write(tmp_path, rows, kind="multilabel", classes=["c0", "c1", "c2"]))
    for probe in PROBES:
        found = probe(task, told(task, grain=6))
        assert score(found.predictions, task, draws=10).primary.value > 0.9
        assert found.choice["chosen_on"] != "val"


def test_ordered_classes_are_chosen_by_kappa(tmp_path):
    task = a_task(tmp_path, {"train": 40, "val": 20, "test": 20}, classes=4, kind="ordinal")
    assert linear_probe(task, told(task), costs=GRID).choice["measured"] == "kappa"


def test_a_solver_that_does_not_converge_is_a_flag_and_no_lost_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.evaluate.probes.linear.ITERATIONS", 2)
    task = a_task(tmp_path, {"train": 40, "val": 20, "test": 20})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = linear_probe(task, told(task), costs=(1e-2, 1e2, 1e4))
    assert not found.choice["converged"]
    assert any(flag.startswith("the solver warned at the chosen C: lbfgs failed to converge") for flag in found.flags)


def test_the_best_c_at_the_edge_of_the_grid_is_told(tmp_path):
    task = a_task(tmp_path, {"train": 60, "val": 30, "test": 20})
    layers = {"only": told(task, grain=0.8)["mean"]}
    whole = linear_probe(task, layers)
    best = whole.choice["grid"].index(whole.choice["C"])
    found = linear_probe(task, layers, costs=whole.choice["grid"][: best + 1])
    assert whole.choice["C"] == found.choice["C"] > whole.choice["grid"][0]
    assert found.choice["at_edge"]
    assert any("edge of the grid" in flag for flag in found.flags)


def test_training_cases_can_be_drawn_and_each_key_draws_others(tmp_path):
    task = a_task(tmp_path, {"train": 40, "val": 20, "test": 20}, images=2)
    layers = told(task, grain=0.7)
    one, again, other = (linear_probe(task, layers, draw=key, costs=GRID) for key in (1, 1, 2))
    assert one.predictions.values.tobytes() == again.predictions.values.tobytes()
    assert one.predictions.values.tobytes() != other.predictions.values.tobytes()
    assert (one.predictions.seed, other.predictions.seed) == (1, 2)


def test_where_the_tasks_number_is_not_defined_on_val_the_choice_says_so(tmp_path):
    task = a_task(tmp_path, {"train": 20, "val": 1, "test": 20})
    found = linear_probe(task, told(task), costs=GRID)
    assert found.choice["measured"] == "-brier"
    assert any("auroc is not defined" in flag for flag in found.flags)


@pytest.mark.parametrize("probe", PROBES)
def test_features_that_do_not_fit_or_are_not_finite_are_refused_by_name(tmp_path, probe):
    task = a_task(tmp_path, {"train": 4, "test": 4})
    with pytest.raises(TaskError, match=r"task made: features cls have shape \(3, 2\), expected \[8, width\]"):
        probe(task, {"cls": np.zeros((3, 2))})
    features = np.zeros((8, 2))
    features[5, 1] = np.nan
    with pytest.raises(TaskError, match=r"features cls of test0001-0\.png are not finite"):
        probe(task, {"cls": features})


def test_classes_apart_from_each_other_need_no_image_of_all():
    x = np.random.default_rng(0).normal(size=(10, 2))
    label = np.stack([np.ones(10, bool), np.zeros(10, bool), x[:, 0] > 0], axis=1)
    [fitted] = fit_linear(x, label, 3, (1e4,))
    probability = fitted.probability(x)
    assert (probability[:, 0] == 1).all()
    assert (probability[:, 1] == 0).all()
    assert ((probability[:, 2] > 0.5) == label[:, 2]).all()


@pytest.mark.slow
def test_noise_reaches_no_more_than_chance_whatever_was_chosen_from(tmp_path):
    """52 settings of neighbors (26 layers, two kinds), and 50 of regressions (2 layers, 25 C), 100 times."""
    inside = {"knn": 0, "linear": 0}
    for seed in range(100):
        task = a_task(tmp_path / str(seed), {"train": 60, "val": 40, "test": 113}, seed=seed, metric="accuracy")
        random = np.random.default_rng(seed)
        noise = {str(layer): random.normal(size=(len(task.rows), 16)) for layer in range(26)}
        for name, probe in (("knn", knn_probe), ("linear", linear_probe)):
            layers = noise if name == "knn" else {layer: noise[layer] for layer in ("0", "1")}
            found = score(probe(task, layers).predictions, task, draws=2)
            share = float(found.made_of.target_nc[:, 1].mean())
            half = 1.96 * (0.25 / 113) ** 0.5
            inside[name] += abs(found.numbers["accuracy"].value - 0.5) <= half
            assert 0.4 < share < 0.6
    assert min(inside.values()) >= 90, inside
