"""Fine-tuning: a model's weights are trained on a task, its predictions saved and scored."""

from dexcore.evaluate.finetuning.config import PRESETS, FinetuneConfig
from dexcore.evaluate.finetuning.run import RunResult, finetune
from dexcore.evaluate.finetuning.training import FinetuneError

__all__ = ["PRESETS", "FinetuneConfig", "FinetuneError", "RunResult", "finetune"]
