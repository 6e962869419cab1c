"""Configurations: ranges, presets, what a resume may change."""

import pytest

from dexcore.engine.config import ConfigError
from dexcore.train.config import (
    PRESETS,
    DataConfig,
    DexConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
)


def test_the_paper_preset_is_the_recipe_of_the_paper():
    paper = PRESETS["paper"]
    assert (paper.model.dim, paper.model.depth, paper.model.heads) == (768, 12, 12)
    assert (paper.model.image_size, paper.model.patch_size) == (256, 16)
    assert (paper.model.num_experts, paper.model.top_k, paper.model.mask_ratio) == (8, 2, 0.75)
    assert (paper.model.decoder_dim, paper.model.decoder_depth) == (512, 8)
    assert (paper.run.epochs, paper.data.batch_size) == (200, 448)
    assert paper.peak_lr == pytest.approx(1e-4 * 448 / 512)
    assert (paper.optimizer.weight_decay, paper.optimizer.clip_norm, paper.optimizer.warmup_epochs) == (
        1e-6,
        1,
        10,
    )
    assert (paper.dex.momentum_start, paper.dex.momentum_end, paper.dex.noise_start) == (0.99, 0.999, 1)
    assert (paper.dex.lambda_align, paper.dex.lambda_balance, paper.dex.balance_schedule) == (
        0.01,
        0.001,
        "cosine",
    )


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            ModelConfig,
            {"image_size": 100},
            r"model.image_size: expected a multiple of model.patch_size = 16, got 100",
        ),
        (ModelConfig, {"dim": 770}, r"model.dim: expected a multiple of 4 and of model.heads = 12, got 770"),
        (ModelConfig, {"decoder_dim": 40}, r"model.decoder_dim: .* model.decoder_heads = 16, got 40"),
        (ModelConfig, {"top_k": 9}, r"model.top_k: expected 1 to 8, the experts of block 0, got 9"),
        (
            ModelConfig,
            {"top_k": (1, 2)},
            r"model.top_k: expected one number, or model.depth = 12, got \(1, 2\)",
        ),
        (ModelConfig, {"num_experts": 0}, r"model.num_experts: expected at least 1"),
        (ModelConfig, {"mask_ratio": 1.0}, r"model.mask_ratio: expected a number between 0 and 1, got 1.0"),
        (ModelConfig, {"mask_ratio": 0.999}, r"model.mask_ratio: expected at least one patch left visible"),
        (ModelConfig, {"mask_ratio": 1e-30}, r"model.mask_ratio: expected at least one patch hidden, got 1e-30"),
        (ModelConfig, {"tau": 0.0}, r"model.tau"),
        (DataConfig, {"batch_size": 0}, r"data.batch_size: expected at least 1, got 0"),
        (DataConfig, {"balance": 1.5}, r"data.balance: expected a number from 0 to 1, got 1.5"),
        (
            OptimizerConfig,
            {"base_lr": float("nan")},
            r"optimizer.base_lr: expected a number above 0, got nan",
        ),
        (OptimizerConfig, {"beta2": 1.0}, r"optimizer.beta2"),
        (DexConfig, {"momentum_end": 1.01}, r"dex.momentum_end"),
        (RunConfig, {"keep_checkpoints": 0}, r"run.keep_checkpoints: expected at least 1, got 0"),
        (RunConfig, {"seed": -1}, r"run.seed"),
        (
            PretrainConfig,
            {"run": RunConfig(epochs=10)},
            r"optimizer.warmup_epochs: expected less than run.epochs = 10",
        ),
        (
            PretrainConfig,
            {"optimizer": OptimizerConfig(min_lr=1)},
            r"optimizer.min_lr: expected at most the peak",
        ),
        (ModelConfig, {"decoder_depth": 0}, r"model.decoder_depth: expected at least 1, got 0"),
        (
            PretrainConfig,
            {"run": RunConfig(epochs=float("inf"))},
            r"run.epochs: expected a finite number, got inf",
        ),
        (
            PretrainConfig,
            {"optimizer": OptimizerConfig(base_lr=float("inf"))},
            r"optimizer.base_lr: expected a finite number, got inf",
        ),
        (PretrainConfig, {"dex": DexConfig(noise_start=1e300)}, r"dex.noise_start: expected at most 3.4e\+38"),
        (PretrainConfig, {"out": ""}, r"out: expected the path of a folder"),
        (ModelConfig, {"dim": "768"}, r"model.dim: expected a whole number, got '768'"),
        (ModelConfig, {"dim": 768.0}, r"model.dim: expected a whole number, got 768.0"),
        (ModelConfig, {"top_k": [2]}, r"model.top_k: expected a whole number, or a list of them, got \[2\]"),
        (ModelConfig, {"top_k": ()}, r"model.top_k: expected a whole number, or a list of them, got \(\)"),
        (ModelConfig, {"tau": None}, r"model.tau: expected a number, got None"),
        (ModelConfig, {"align": "dot"}, r"model.align: expected 'kd' or 'cosine' or 'mse', got 'dot'"),
        (DexConfig, {"noise_start": True}, r"dex.noise_start: expected a number, got True"),
        (OptimizerConfig, {"beta1": "0.9"}, r"optimizer.beta1: expected a number, got '0.9'"),
        (RunConfig, {"device": 0}, r"run.device: expected a text, got 0"),
        (PretrainConfig, {"resume": 1}, r"resume: expected true or false, got 1"),
        (PretrainConfig, {"model": {}}, r"model: expected a ModelConfig, got {}"),
        (ModelConfig, {"mlp_ratio": 1e-4}, r"model.mlp_ratio: expected .* at least 1 and below 2\^31 hidden units"),
        (ModelConfig, {"mlp_ratio": float("nan")}, r"model.mlp_ratio: expected .* hidden units, got nan"),
        (ModelConfig, {"depth": 10**9}, r"model.depth: expected at most 1024, got 1000000000"),
        (ModelConfig, {"image_size": 2**20}, r"model.image_size: expected at most 16384"),
        (ModelConfig, {"num_experts": 10**9}, r"model: expected at most 1e\+12 parameters, got \d{17}$"),
        (DataConfig, {"workers": 10**6}, r"data.workers: expected at most 1024, got 1000000"),
        (DataConfig, {"batch_size": 2**40}, r"data.batch_size: expected at most 1048576"),
        (DataConfig, {"epoch_size": 2**40}, r"data.epoch_size: expected at most 1000000000"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(section, values, message):
    with pytest.raises(ConfigError, match=message):
        section(**values)


def test_experts_may_differ_by_block():
    model = ModelConfig(depth=3, num_experts=(8, 4, 2), top_k=(1, 2, 2))
    assert model.num_experts == (8, 4, 2)
    with pytest.raises(ConfigError, match="the experts of block 2"):
        ModelConfig(depth=3, num_experts=(8, 4, 2), top_k=(1, 2, 3))
