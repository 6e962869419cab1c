"""What SyntheticMVU is for: its label can be learned within a modality and across modalities, and the modality
tells nothing of it."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dexcore.data import Modality, SyntheticMVU

_IMAGES = 200  # of each modality
_TRAIN = 140  # the rest tests
_CHANCE = 1 / 3  # of the balanced accuracy for healthy, compact, spread
_BLURS = (0.7, 1.2, 2.0, 3.2, 5.0, 8.0)  # pixels
_QUANTILES = np.array([0, 0.003, 0.01, 0.03, 0.1, 0.25, 0.75, 0.9, 0.97, 0.99, 0.997, 1])


@pytest.fixture(scope="module")
def corpus():
    """Labels [10, n] and features [10, n, f] of one data set in which the modalities take turns."""
    modalities = tuple(Modality)
    source = SyntheticMVU(modalities, size=64, seed=1)
    samples = [source.sample(index) for index in range(_IMAGES * len(modalities))]
    labels = np.array([sample.label for sample in samples]).reshape(_IMAGES, -1).T
    features = np.array([_blobs(sample.image) for sample in samples])
    return labels, features.reshape(_IMAGES, len(modalities), -1).swapaxes(0, 1)


def _blobs(image):
    """How strong the strongest bright and dark blobs of five sizes are; nothing of where they lie."""
    gray = image.mean(axis=2) if image.ndim == 3 else image
    blurred = [cv2.GaussianBlur(gray, (0, 0), sigma) for sigma in _BLURS]
    features = []
    for finer, coarser in pairwise(blurred):
        responses = np.sort((finer - coarser)[6:-6, 6:-6], axis=None)
        features.append(responses[((len(responses) - 1) * _QUANTILES).astype(int)])
    return np.concatenate(features)


def _kind(labels):
    """0 healthy, 1 compact, 2 spread."""
    return (labels > 0).astype(int) + (labels > 3)


def _standardized(features):
    """Each modality by its own mean and deviation, known without a label."""
    return np.stack([StandardScaler().fit(of_one[:_TRAIN]).transform(of_one) for of_one in features])


def _linear():
    return LogisticRegression(C=0.01, max_iter=500, class_weight="balanced")


def _score(model, features, labels):
    return balanced_accuracy_score(labels, model.predict(features))


def _within(features, targets):
    """Of each modality: cross-validated by a linear model of its own."""
    model = make_pipeline(StandardScaler(), _linear())
    predicted = (cross_val_predict(model, *own, cv=5) for own in zip(features, targets, strict=True))
    return [balanced_accuracy_score(*both) for both in zip(targets, predicted, strict=True)]


def test_the_kind_of_lesion_is_learned_within_each_modality(corpus):
    """Where nothing is to be learned a score of 200 images deviates from chance by 0.035."""
    labels, features = corpus
    scores = _within(features, _kind(labels))
    assert min(scores) > _CHANCE + 0.1, scores
    assert np.mean(scores) > 0.7, scores


def test_the_number_of_lesions_is_learned_too(corpus):
    """All seven labels, chance 1/7. Where nothing is to be learned a score deviates from it by 0.025."""
    labels, features = corpus
    scores = _within(features, labels)
    assert min(scores) > 1 / 7 + 0.05, scores
    assert np.mean(scores) > 0.4, scores


def test_one_classifier_that_is_not_told_the_modality_learns_all_of_them(corpus):
    """Cross-validated, so that CT, the hardest, is judged by all its images: 0.44 to 0.52 for three seeds."""
    labels, features = corpus
    kinds = _kind(labels)
    model = ExtraTreesClassifier(60, class_weight="balanced", min_samples_leaf=3, random_state=0)
    folds = np.tile(np.arange(_IMAGES) % 5, len(Modality))
    predicted = cross_val_predict(model, np.concatenate(features), kinds.ravel(), groups=folds, cv=GroupKFold(5))
    scores = [balanced_accuracy_score(*own) for own in zip(kinds, predicted.reshape(kinds.shape), strict=True)]
    assert min(scores) > _CHANCE + 0.07, scores
    assert np.mean(scores) > 0.65, scores


def test_the_label_carries_over_to_a_modality_that_was_never_seen(corpus):
    """Nine modalities teach the tenth: the label means the same in all. With labels shuffled they teach nothing."""
    labels, features = corpus
    kinds, features = _kind(labels), _standardized(features)
    generator = np.random.default_rng(0)

    def transfer(taught):
        scores = []
        for left_out in range(len(Modality)):
            others = np.arange(len(Modality)) != left_out
            model = _linear().fit(np.concatenate(features[others]), np.concatenate(taught[others]))
            scores.append(_score(model, features[left_out], kinds[left_out]))
        return np.mean(scores)

    assert transfer(kinds) > _CHANCE + 0.1
    by_chance = [transfer(generator.permuted(kinds, axis=1)) for _ in range(5)]  # each deviates by 0.05
    assert abs(np.mean(by_chance) - _CHANCE) < 0.06, by_chance


def test_labels_are_as_frequent_in_every_modality(corpus):
    labels, _ = corpus
    counts = np.stack([np.bincount(own, minlength=len(SyntheticMVU.labels)) for own in labels])
    assert chi2_contingency(counts).pvalue > 0.01
    assert np.abs(counts.sum(axis=0) / counts.sum() - 1 / 7).max() < 0.025


def test_the_modality_alone_tells_nothing_of_the_label(corpus):
    """The best guess from the modality, its most frequent label in one half, is right by chance in the other."""
    labels, _ = corpus
    guess = [np.bincount(own[:_TRAIN]).argmax() for own in labels]
    hits = labels[:, _TRAIN:] == np.array(guess)[:, None]
    deviation = np.sqrt(1 / 7 * 6 / 7 / hits.size)
    assert abs(hits.mean() - 1 / 7) < 3 * deviation


def test_the_modality_itself_is_plain_to_see(corpus):
    """That the modality says nothing of the label is no blur between the modalities."""
    _, features = corpus
    modality = np.repeat(np.arange(len(Modality)), _IMAGES).reshape(len(Modality), _IMAGES)
    model = ExtraTreesClassifier(50, random_state=0)
    model.fit(np.concatenate(features[:, :_TRAIN]), modality[:, :_TRAIN].ravel())
    assert model.score(np.concatenate(features[:, _TRAIN:]), modality[:, _TRAIN:].ravel()) > 0.95
