import numpy as np
import pytest
from made_runs import make_analysis, make_evaluation

from dexcore.report import Analysis


def test_what_was_saved_comes_back(tmp_path):
    before = make_analysis(make_evaluation(), experts=(8, 3))
    before.save(tmp_path / "analysis.npz")
    after = Analysis.load(tmp_path / "analysis.npz")
    assert (after.label_names, after.gradient_modalities) == (before.label_names, before.gradient_modalities)
    for name in ("label", "patch_variance", "gradient_images", "gradient_cosines"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), strict=True)
    for name in ("features", "patches"):
        assert getattr(after, name).dtype == np.float32
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-3)
    for saved, loaded in zip(before.expert_similarity, after.expert_similarity, strict=True):
        np.testing.assert_array_equal(loaded, saved, strict=True)


def test_a_run_without_labels_or_comparable_modalities_round_trips(tmp_path):
    evaluation = make_evaluation([0])
    analysis = make_analysis(evaluation, label_names=(), label=[-1])
    assert analysis.gradient_modalities == ()
    analysis.save(tmp_path / "analysis.npz")
    assert Analysis.load(tmp_path / "analysis.npz").label.tolist() == [-1]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "analysis.npz"
    make_analysis(make_evaluation()).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"analysis\.npz: truncated or damaged"):
        Analysis.load(path)


def test_a_missing_file_and_another_npz_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: no such file"):
        Analysis.load(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "evaluation.npz", format=np.array(1), blocks=np.array(0))  # the same number, other content
    with pytest.raises(ValueError, match=r"evaluation\.npz: the array 'label_names' is missing"):
        Analysis.load(tmp_path / "evaluation.npz")
    np.savez(tmp_path / "other.npz", format=np.array(99))
    with pytest.raises(ValueError, match=r"other\.npz: format 99, expected an analysis's numbers in format 1"):
        Analysis.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [2] * 8}, "label: an index is no index of 2 label_names, nor -1"),
        ({"label": [-2] * 8}, "label: an index is no index of 2 label_names, nor -1"),
        ({"features": np.ones((2, 7, 3))}, r"features: shape \(2, 7, 3\), expected \(any, 8, any\)"),
        ({"features": "many"}, "features: expected numbers"),
        ({"patches": np.ones((1, 3, 2, 2, 3))}, r"patches: shape \(1, 3, 2, 2, 3\), expected \(2, any, any, any, 3\)"),
        ({"patch_variance": [1.0]}, r"patch_variance: shape \(1,\)"),
        ({"gradient_images": [1]}, r"gradient_images: shape \(1,\), expected \(3,\)"),
        ({"gradient_cosines": np.ones((3, 3))}, r"gradient_cosines: shape \(3, 3\), expected \(2, 3, 3\)"),
        ({"expert_similarity": [np.ones((3, 3)), np.ones((3, 2))]}, r"expert_similarity\[1\]: shape \(3, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_analysis(make_evaluation(), **change)


def test_a_dense_encoder_has_one_mode_and_one_part(tmp_path):
    evaluation = make_evaluation()
    dense = make_analysis(evaluation)
    one = {name: getattr(dense, name)[:1] for name in ("features", "patches", "gradient_cosines")}
    dense = make_analysis(evaluation, **one)
    assert dense.modes == ("dense",)
    dense.save(tmp_path / "analysis.npz")
    assert Analysis.load(tmp_path / "analysis.npz").modes == ("dense",)
    with pytest.raises(ValueError, match="features: of 3 modes, expected 2, or 1 of a dense encoder"):
        make_analysis(evaluation, features=np.ones((3, 8, 6)))
