"""Pre-training: `pretrain` runs what a `PretrainConfig` describes."""

from dexcore.engine.config import ConfigError
from dexcore.train.config import PRESETS, PretrainConfig
from dexcore.train.pretraining import RunResult, pretrain

__all__ = ["PRESETS", "ConfigError", "PretrainConfig", "RunResult", "pretrain"]
