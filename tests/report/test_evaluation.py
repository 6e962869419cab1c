import os
import zipfile

import numpy as np
import pytest
from made_runs import make_evaluation, make_examples

from dexcore.report import Evaluation
from dexcore.report.evaluation import NOT_SHOWN


def test_what_was_saved_comes_back(tmp_path):
    gates = [np.random.default_rng(0).random((8, experts)).astype(np.float32) for experts in (8, 3)]
    before = make_evaluation(gates=gates, group=[f"vólume {i}" for i in range(8)])
    before.save(tmp_path / "evaluation.npz")
    after = Evaluation.load(tmp_path / "evaluation.npz")
    assert after.modality_names == before.modality_names
    for name in ("modality", "heldout", "synthetic", "group", "sample_id", "squared_error", "total"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), strict=True)
    for saved, loaded in zip(gates, after.gates, strict=True):
        np.testing.assert_array_equal(loaded, saved, strict=True)
    np.testing.assert_array_equal(after.examples.heldout, before.examples.heldout)
    np.testing.assert_array_equal(after.examples.hidden, before.examples.hidden)
    for name in ("input", "reconstruction", "patch_mean"):
        assert getattr(after.examples, name).dtype == np.float32
        np.testing.assert_allclose(getattr(after.examples, name), getattr(before.examples, name), atol=0.5 / 255)


def test_a_dense_model_without_examples_round_trips(tmp_path):
    make_evaluation(examples=make_examples([], [], [])).save(tmp_path / "evaluation.npz")
    after = Evaluation.load(tmp_path / "evaluation.npz")
    assert after.gates == ()
    assert len(after.examples) == 0


def test_the_file_holds_no_pickles(tmp_path):
    make_evaluation().save(tmp_path / "evaluation.npz")
    with np.load(tmp_path / "evaluation.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "evaluation.npz"
    make_evaluation().save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"evaluation\.npz: truncated or damaged"):
        Evaluation.load(path)


def test_flipped_bytes_are_noticed(tmp_path):
    path = tmp_path / "evaluation.npz"
    make_evaluation().save(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("examples_input.npy")
    start = entry.header_offset + entry.compress_size // 2
    content[start : start + 64] = os.urandom(64)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged"):
        Evaluation.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: no such file"):
        Evaluation.load(tmp_path / "nowhere.npz")


def test_another_npz_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(ValueError, match=r"other\.npz: format None"):
        Evaluation.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total": np.ones(7)}, r"total: shape \(7,\), expected \(8,\)"),
        ({"total": -np.ones(8)}, "total: a sum of squares is negative"),
        ({"heldout": [True]}, r"heldout: shape \(1,\)"),
        ({"squared_error": ["many"] * 8}, "squared_error: expected numbers"),
        ({"gates": [np.ones((8, 4)), np.ones((7, 4))]}, r"gates\[1\]: shape \(7, 4\)"),
        ({"modality": [0] * 7 + [3]}, "modality: an index is no index of 3 modality_names"),
        ({"modality": [0] * 7 + [-1]}, "modality: an index is no index of 3 modality_names"),
        ({"examples": make_examples([7], [False], [False])}, r"examples\.modality"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_evaluation(**change)


def test_example_images_of_another_shape_are_named():
    with pytest.raises(ValueError, match="synthetic: shape"):
        make_examples([0, 1], [False], [False, False])
    examples = make_examples([0], [False], [False])
    with pytest.raises(ValueError, match=r"patch_mean: shape \(1, 9, 9, 3\), expected \(1, 24, 24, 3\)"):
        type(examples)([0], [0], [0], examples.input, examples.hidden, examples.input, np.ones((1, 9, 9, 3)))
    with pytest.raises(ValueError, match=r"hidden: shape \(1, 9, 9\), expected \(1, 24, 24\)"):
        type(examples)([0], [0], [0], examples.input, np.ones((1, 9, 9)), examples.input, examples.input)


def test_what_an_older_version_wrote_is_read_but_for_the_patches_means(tmp_path):
    before = make_evaluation()
    before.save(tmp_path / "evaluation.npz")
    with np.load(tmp_path / "evaluation.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    hidden = arrays.pop("examples_hidden")
    del arrays["examples_patch_mean"]
    arrays["examples_masked"] = np.where(hidden[..., None], np.uint8(128), arrays["examples_input"])
    arrays["examples_pasted"] = arrays["examples_input"]
    np.savez_compressed(tmp_path / "older.npz", **(arrays | {"format": np.array(1)}))
    after = Evaluation.load(tmp_path / "older.npz")
    np.testing.assert_array_equal(after.squared_error, before.squared_error)
    np.testing.assert_array_equal(after.examples.hidden, before.examples.hidden)
    assert not after.examples.has_patch_mean


def test_a_column_shows_what_was_visible_or_what_was_predicted_and_never_both():
    examples = make_examples([0, 1], [False] * 2, [True] * 2)
    left, right = (slice(None), slice(None), slice(0, 16)), (slice(None), slice(None), slice(16, 24))
    prediction = examples.only_hidden(examples.reconstruction)
    np.testing.assert_array_equal(prediction[left], examples.reconstruction[left])
    np.testing.assert_array_equal(examples.masked[right], examples.input[right])
    assert (prediction[right] == NOT_SHOWN).all()
    assert (examples.masked[left] == NOT_SHOWN).all()
