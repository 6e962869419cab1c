"""Losses of masks and labels: by hand, image by image, without what does not count."""

import pytest
import torch
from torch.nn import functional as F

from dexcore.evaluate.losses import UNKNOWN, label_loss, segmentation_losses


def by_hand(logits, target):
    """Of one image with classes: the entropy of the pixels that count, and 1 - Dice of the foreground, in words."""
    counts = target != UNKNOWN
    entropy = -F.log_softmax(logits, 0).gather(0, target.clamp_min(0)[None])[0][counts].mean()
    probability, dice = logits.softmax(0), []
    for number in range(1, len(logits)):
        p, t = probability[number][counts], (target == number)[counts].double()
        dice.append((2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5))
    return entropy, 1 - torch.stack(dice).mean()


def test_masks_of_classes_lose_cross_entropy_and_dice_of_the_foreground():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randint(-1, 4, (3, 5, 6))
    found = segmentation_losses(logits, target)
    for image in range(3):
        expected = by_hand(logits[image], target[image])
        assert [one[image].item() for one in found] == pytest.approx([one.item() for one in expected], rel=1e-12)


def test_channels_lose_apart_and_an_unknown_pixel_changes_nothing():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(0, 2, (2, 3, 4, 4))
    target[:, :, :, 3] = UNKNOWN
    entropy, dice = segmentation_losses(logits, target)
    seen, truth = logits[..., :3], target[..., :3].double()
    assert entropy.mean().item() == pytest.approx(F.binary_cross_entropy_with_logits(seen, truth).item(), rel=1e-12)
    p = seen.sigmoid()
    of_channels = (2 * (p * truth).sum((2, 3)) + 1e-5) / (p.sum((2, 3)) + truth.sum((2, 3)) + 1e-5)
    torch.testing.assert_close(dice, 1 - of_channels.mean(1))
    logits[..., 3] += 100
    assert [one.tolist() for one in segmentation_losses(logits, target)] == [entropy.tolist(), dice.tolist()]


def test_an_image_without_a_known_pixel_loses_nothing_and_pulls_at_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    entropy, dice = segmentation_losses(logits, torch.full((1, 4, 4), UNKNOWN))
    (entropy + dice).sum().backward()
    assert (entropy.item(), dice.item()) == (0, 0)
    assert not logits.grad.any()


def test_a_perfect_mask_loses_next_to_nothing_and_the_contrary_all():
    target = torch.arange(16).reshape(1, 4, 4) % 2
    right = 50 * (F.one_hot(target, 2).permute(0, 3, 1, 2).float() - 0.5)
    assert sum(segmentation_losses(right, target)).item() < 1e-4
    assert segmentation_losses(-right, target)[1].item() > 0.999


def test_labels_lose_cross_entropy_and_several_of_an_image_the_binary_one():
    logits = torch.randn(4, 3)
    label = torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(label_loss(logits, label).mean(), F.cross_entropy(logits, label))
    several = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]])
    expected = F.binary_cross_entropy_with_logits(logits, several.float())
    torch.testing.assert_close(label_loss(logits, several).mean(), expected)
