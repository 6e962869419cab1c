import numpy as np
import pytest

from dexcore.data.assemble.masks import looks_like_labels, named_like_a_mask, paired_masks


@pytest.mark.parametrize(
    "path",
    [
        "benign (1)_mask.png",
        "benign (1)_mask_1.png",
        "masks/1.jpg",
        "labelsTr/case_001.nii.gz",
        "patient001_frame01_gt.nii.gz",
        "1.label.nii.gz",
        "SEG.nii.gz",
        "s0001/segmentations/liver.nii.gz",
        "BraTS-GLI-00000-000-seg.nii.gz",
        "ROSE-1/gt/01.png",
        "labels-2/x.png",
    ],
)
def test_words_for_masks(path):
    assert named_like_a_mask(path)


@pytest.mark.parametrize(
    "path",
    [
        "labeled-images/a.jpg",
        "unmasked/1.png",
        "kvasir-seg-256/images/1.jpg",
        "segments.png",
        "sagittal/gtx.png",
        "a.png",
    ],
)
def test_words_that_only_look_like_it(path):
    assert not named_like_a_mask(path)


def test_masks_are_paired_with_their_images():
    images = ["images/1.jpg", "b/benign (1).png", "CT_image.nii.gz", "imagesTr/c_001_0000.nii.gz", "x/p_img.png"]
    masks = ["masks/1.png", "b/benign (1)_mask.png", "CT_mask.nii.gz", "labelsTr/c_001.nii.gz", "x/p_seg.png"]
    alone = ["masks/99.png", "other_mask.png"]
    assert paired_masks([*images, *masks, *alone]) == set(masks)


def test_a_data_set_that_is_called_after_its_masks():
    images = [f"polyp-masks/images/{index}.jpg" for index in range(3)]
    masks = [f"polyp-masks/masks/{index}.jpg" for index in range(3)]
    assert paired_masks([*images, *masks]) == set(masks)
    assert paired_masks(images) == set()


def test_values_of_masks_and_label_maps():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 90, 90)).astype(np.uint8)
    binary = (noise > 128).astype(np.uint8) * 255
    labels = (noise % 5).astype(np.float32)
    many = noise % 20
    blurred = np.where(noise > 128, 250, 4).astype(np.uint8) + (noise % 5)
    colored = np.stack([binary, binary * 0, binary], axis=-1)
    assert looks_like_labels(noise, True) is None
    assert looks_like_labels(binary, False) == "a mask: it has two values"
    assert looks_like_labels(colored, False) == "a mask: it has two values"
    assert looks_like_labels(labels, False) == "a label map: it has 5 values"
    assert looks_like_labels(many, False) is None
    assert looks_like_labels(many, True) == "a label map: it has 20 values"
    assert looks_like_labels(np.where(noise > 128, noise, blurred) // 230 * 230 + noise % 20, True) is not None
    assert looks_like_labels(labels / 4 + 0.1, True) is None  # no whole numbers: a map of probabilities, or an image
    assert looks_like_labels(np.zeros((1, 90, 90)), False) is None  # constant, as the filter says


def test_a_value_that_is_rare_is_not_missed():
    volume = np.zeros((80, 90, 100), np.float32)
    volume[..., :50] = 1
    assert looks_like_labels(volume, False) == "a mask: it has two values"
    volume[1:61, 1, 1] = np.arange(60) + 0.5  # where a sample of every third does not look
    assert looks_like_labels(volume, False) is None


def test_a_volume_is_not_copied():
    volume = np.zeros((40, 400, 400), np.float32).transpose(2, 1, 0)
    volume[::2] = 3
    import tracemalloc

    tracemalloc.start()
    assert looks_like_labels(volume, False) == "a mask: it has two values"
    assert tracemalloc.get_traced_memory()[1] < volume.nbytes / 4
    tracemalloc.stop()
