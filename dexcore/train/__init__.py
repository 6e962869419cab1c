"""Pre-training: `pretrain` runs what a `PretrainConfig` describes."""

from dexcore.train.config import PRESETS, ConfigError, PretrainConfig
from dexcore.train.run import RunResult, pretrain

__all__ = ["PRESETS", "ConfigError", "PretrainConfig", "RunResult", "pretrain"]
