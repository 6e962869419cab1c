"""How alike the experts are, when it is measured, on what, and that it changes nothing."""

import random

import numpy as np
import pytest
import torch
from runs import state, tiny

from dexcore import ops
from dexcore.data.feed.dataset import MVUDataset, open_mvu
from dexcore.data.store.manifest import ImageDecodeError, StoreError
from dexcore.evaluate.reconstruct import batches
from dexcore.evaluate.similarity import _rows, alignment, expert_similarity, moments
from dexcore.nn import record_load, share_load, update_directors
from dexcore.nn.mlp import dex_layers
from dexcore.train.build import build_model

_CPU = torch.device("cpu")


@pytest.mark.parametrize("steps", [10, 11, 40, 1664, 2**31 + 1])
def test_a_run_is_measured_at_eleven_evenly_spread_moments(steps):
    found = sorted(moments(steps))
    assert (len(found), found[0], found[-1]) == (11, 0, steps)
    assert np.ptp(np.diff(found)) <= 1


def test_a_short_run_is_measured_at_every_step():
    assert moments(1) == {0, 1}
    assert moments(4) == {0, 1, 2, 3, 4}


def _random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def test_measuring_leaves_model_load_and_random_states_alone(store, tmp_path):
    config = tiny(store, tmp_path)
    model, images = build_model(config.model).train(), open_mvu(store)
    model(torch.randn(3, 3, 32, 32))
    record_load(model)
    _, before = share_load(model, torch.zeros(0))
    before = [load.clone() for load in before]
    weights, drawn = state(model), _random_states()
    modes = [module.training for module in model.modules()]
    first = expert_similarity(model, images, config.setting, _CPU)
    assert _random_states() == drawn
    assert all(np.array_equal(value, weights[name]) for name, value in state(model).items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for load, expected in zip(share_load(model, torch.zeros(0))[1], before, strict=True):
        assert torch.equal(load, expected)
    update_directors(model, 1.0)
    for one, other in zip(first, expert_similarity(model.eval(), images, config.setting, _CPU), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not model.training


class _Watched(MVUDataset):
    """A store that remembers what was read."""

    def __init__(self, path):
        super().__init__(path)
        self.rows = []

    def read(self, index):
        self.rows.append(index)
        return super().read(index)


def test_all_modalities_take_part_alike_and_always_with_the_same_images(store, tmp_path):
    images = _Watched(store)
    for seed in (0, 1):
        config = tiny(store, tmp_path, seed=seed)
        expert_similarity(build_model(config.model), images, config.setting, _CPU)
    first, second = np.array_split(images.rows, 2)
    assert first.tolist() == second.tolist()
    _, counts = np.unique(images.modality[first], return_counts=True)
    assert len(counts) == 4
    assert np.ptp(counts) == 0


class _Spoilt(MVUDataset):
    def read(self, index):
        raise ImageDecodeError(f"row {index}")


def test_a_store_that_cannot_be_read_is_a_clear_error(store, tmp_path):
    config = tiny(store, tmp_path)
    with pytest.raises(StoreError, match=r"data\.store: none of \d+ images from all over test can be decoded"):
        expert_similarity(build_model(config.model), _Spoilt(store), config.setting, _CPU)


def test_the_alignment_is_the_losses_of_the_layers_and_its_floor_their_agreement(store, tmp_path):
    config = tiny(store, tmp_path, precision="fp32")
    torch.manual_seed(0)
    model, images = build_model(config.model).train(), open_mvu(store)
    with torch.no_grad():
        for layer in dex_layers(model):
            for parameter in layer.experts.parameters():
                parameter.add_(torch.randn_like(parameter))
    found = alignment(model, images, config.setting, _CPU)
    assert found.kind == "kd"
    assert model.training
    inputs = {}
    for layer in dex_layers(model):
        layer.register_forward_pre_hook(lambda layer, arguments: inputs.update({layer: arguments[0]}))
    (batch,) = batches(images, _rows(images), model, config.setting)
    with torch.no_grad():
        model.eval()(batch.images, noise=batch.noise)
        for layer, loss, floor in zip(dex_layers(model), found.loss, found.floor, strict=True):
            teacher = layer.director(inputs[layer])
            assert loss == pytest.approx(ops.mix_align(layer(inputs[layer]), teacher).item(), rel=1e-5)
            entropy = torch.distributions.Categorical(logits=teacher / 0.5).entropy().mean().item()
            assert floor == pytest.approx(entropy, rel=1e-5)
            assert loss > floor
