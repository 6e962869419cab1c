"""A student and its frozen teacher: targets, loss, and what is saved."""

import copy

import numpy as np
import pytest
import timm
import torch

from dexcore.models import DEXVisionTransformer, DistilledEncoder, Teacher
from dexcore.nn import update_directors
from dexcore.view import LUMA

SIZE, PATCH, GRID = 32, 8, (4, 4)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _vit(seed=0, **more):
    torch.manual_seed(seed)
    arguments = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.models.VisionTransformer(**arguments | more)


def _teacher_model(**more):
    model = _vit(1, **more)
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    return model


def _student(**more):
    torch.manual_seed(0)
    arguments = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_experts": 2}
    return DEXVisionTransformer(**arguments, top_k=1, num_classes=0, **more)


def _images(channels=3):
    return torch.randn(3, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def test_targets_are_the_teacher_s_tokens_of_the_same_pixels_each_without_mean_and_deviation():
    model = _teacher_model(reg_tokens=2)
    teacher = Teacher(copy.deepcopy(model), GRID, MEAN, STD)
    pixels = _images() * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    given = (pixels - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)) / torch.tensor((0.5, 0.6, 0.7)).view(3, 1, 1)
    with torch.no_grad():
        tokens = model.eval().forward_features(given).double()
    tokens = torch.cat([tokens[:, :1], tokens[:, 3:]], dim=1)  # without the registers
    centred = tokens - tokens.mean(-1, keepdim=True)
    expected = centred / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    np.testing.assert_allclose(teacher.tokens(_images()).numpy(), expected.numpy(), atol=1e-4)


def test_the_loss_is_the_mean_of_the_class_token_s_error_and_the_patches():
    teacher = Teacher(_teacher_model(), GRID, MEAN, STD)
    model = DistilledEncoder(_student(), teacher.shape.dim)
    model.teacher = teacher
    output = model(_images())
    taught = teacher.tokens(_images()).double()
    pred = model.head(model.encoder.forward_features(_images())).double()
    error = (pred - taught).square().mean(-1)
    assert output.loss.item() == pytest.approx(((error[:, 0].mean() + error[:, 1:].mean()) / 2).item(), rel=1e-5)
    assert torch.equal(output.mask, torch.ones(3, 16))
    np.testing.assert_allclose(output.pred.detach().numpy(), pred[:, 1:].detach().numpy(), atol=1e-5)
    np.testing.assert_array_equal(output.target, teacher.tokens(_images())[:, 1:])
    score = model.score(_images(), output)
    assert score.loss.mean().item() == pytest.approx(output.loss.item(), rel=1e-6)
    target = taught[:, 1:]
    total = (target - target.mean(1, keepdim=True)).square().sum(-1)
    np.testing.assert_allclose(score.total.numpy(), total.numpy(), rtol=1e-5)
    np.testing.assert_allclose(score.error.detach().numpy(), 24 * error[:, 1:].detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize("selective", [False, True])
def test_activation_checkpointing_changes_no_gradient(selective):
    teacher = Teacher(_teacher_model(), GRID, MEAN, STD)
    model = DistilledEncoder(_student(pre_norm=True), teacher.shape.dim)
    model.teacher = teacher
    gradients = []
    for again in (False, True):
        model.set_grad_checkpointing(again, selective)
        runs = []
        hook = model.encoder.blocks[0].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        model.zero_grad()
        model(_images()).loss.backward()
        hook.remove()
        update_directors(model, 1.0)
        assert len(runs) == 1 + again
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, saving in zip(*gradients, strict=True):
        assert torch.equal(plain, saving)


def test_a_teacher_without_a_class_token_teaches_patches_alone():
    teacher = Teacher(_teacher_model(class_token=False, global_pool="avg"), GRID, MEAN, STD)
    assert not teacher.shape.has_class
    model = DistilledEncoder(_student(), *teacher.shape)
    model.teacher = teacher
    assert model(_images()).loss.item() == pytest.approx(
        (model(_images()).pred - teacher.tokens(_images())).square().mean().item(), rel=1e-5
    )


@pytest.mark.parametrize(("channels", "teacher_channels"), [(1, 3), (3, 1), (5, 5)])
def test_gray_and_colour_meet(channels, teacher_channels):
    model = _vit(1, in_chans=teacher_channels)
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
    teacher = Teacher(model, GRID, (0.5,) * channels, (0.25,) * channels)
    gray = _images(1).expand(-1, channels, -1, -1)
    with torch.no_grad():
        expected = model.forward_features(_images(1).expand(-1, teacher_channels, -1, -1))
    expected = torch.nn.functional.layer_norm(expected, (24,))
    np.testing.assert_allclose(teacher.tokens(gray).numpy(), expected.numpy(), atol=1e-5)


def test_colour_becomes_the_gray_that_it_is_everywhere():
    model = _vit(1, in_chans=1)
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}
    teacher = Teacher(model, GRID, MEAN, STD)
    colour = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    gray = torch.from_numpy(np.tensordot(LUMA, colour.numpy(), axes=(0, 1)))[:, None]
    with torch.no_grad():
        expected = torch.nn.functional.layer_norm(model.forward_features((gray - 0.5) / 0.25), (24,))
    given = (colour - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    np.testing.assert_allclose(teacher.tokens(given).numpy(), expected.numpy(), atol=1e-4)


def test_a_teacher_is_known_by_its_weights_whatever_size_it_is_set_to():
    models = [_teacher_model(img_size=64, patch_size=16) for _ in range(3)]
    with torch.no_grad():
        models[2].cls_token[0, 0, 0] += 1e-3
    same, resized, other = (
        Teacher(model, grid, MEAN, STD) for model, grid in zip(models, [(4, 4), (2, 2), (4, 4)], strict=True)
    )
    assert same.sha256 == resized.sha256 != other.sha256


def test_a_teacher_of_another_patch_size_is_resized_to_the_student_s_grid():
    teacher = Teacher(_teacher_model(img_size=64, patch_size=16), (2, 2), MEAN, STD)
    assert teacher.size == (32, 32)
    finer = Teacher(_teacher_model(img_size=64, patch_size=4), GRID, MEAN, STD)
    assert finer.size == (16, 16)
    assert finer.tokens(_images()).shape == (3, 17, 24)


def test_the_teacher_is_neither_trained_nor_saved_nor_copied(tmp_path):
    teacher = Teacher(_teacher_model(), GRID, MEAN, STD)
    before = copy.deepcopy(teacher.model.state_dict())
    model = DistilledEncoder(_student(), teacher.shape.dim)
    model.teacher = teacher
    names = {name for name, _ in model.named_parameters()}
    assert all(name.startswith(("encoder.", "head.")) for name in names)
    assert copy.deepcopy(model).teacher is teacher
    model.train()(_images()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())

    model.save_pretrained(tmp_path)
    again = DistilledEncoder.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="teacher must be set"):
        again(_images())
    encoder = DEXVisionTransformer.from_pretrained(tmp_path)
    assert torch.equal(encoder.forward_features(_images()), model.eval().encoder.forward_features(_images()))


def test_what_cannot_teach_is_refused():
    with pytest.raises(ValueError, match="ResNet cannot teach: expected a vision transformer"):
        Teacher(timm.create_model("resnet10t", num_classes=0), GRID, MEAN, STD)
    with pytest.raises(ValueError, match="sees images of 3 channels, got 2"):
        Teacher(_teacher_model(), GRID, (0.5, 0.5), (0.5, 0.5))
    silent = _teacher_model()
    silent.pretrained_cfg = {}
    with pytest.raises(ValueError, match="does not say by which mean and std its images were normalized"):
        Teacher(silent, GRID, MEAN, STD)
    with pytest.raises(ValueError, match="class_token must be False"):
        DistilledEncoder(_student(class_token=False, pool="mean", global_pool="avg"), 24)
    with pytest.raises(TypeError, match="encoder"):
        DistilledEncoder(torch.nn.Linear(2, 2), 24)
