"""What a comparison of two runs has to know: which model it is, what it costs, which images it was shown when."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dexcore.report.objectives import OBJECTIVES

KINDS = {
    "dex": "Director-Experts",
    "dense": "dense twin: a plain MLP of an expert's width in every block, no experts",
    "dense-wide": "wide dense twin: a plain MLP in every block, as wide as the experts that an image uses, no experts",
    "fixed-routing": "twin with fixed routing: a hash of the image's number chooses its experts, no router learns",
    "oracle-routing": "twin with oracle routing: the image's modality chooses its experts, no router learns",
}

_OF_THE_ROUTER = ("model.tau", "dex.noise_start", "dex.lambda_balance", "dex.balance_schedule")
_OF_EXPERTS = (
    "model.align",
    "model.keep",
    "model.backend",
    "dex.lambda_align",
    "dex.momentum_start",
    "dex.momentum_end",
)


def by_rule(mlp: str) -> bool:
    """Whether a kind (a key of `KINDS`) has experts that a rule chooses, and no router."""
    return mlp.endswith("-routing")


def idle_settings(mlp: str) -> tuple[str, ...]:
    """Names of a configuration's settings that do nothing in a run of this kind."""
    if by_rule(mlp):
        return _OF_THE_ROUTER
    if mlp == "dex":
        return ()
    return (*(("model.top_k",) if mlp == "dense" else ()), *_OF_THE_ROUTER, *_OF_EXPERTS)


@dataclass(frozen=True)
class Comparison:
    """The content of comparison.json.

    Attributes:
        mlp: kind of the encoder's MLPs, a key of `KINDS`.
        order_sha256: of what decides which images each step saw, how they were changed and which patches were hidden.
        parameters: of the model: encoder, and decoder or head.
        inference_flops: of the encoder, a whole image: matrix products, two FLOPs a multiply-add.
        training_flops: of a step, an image: forward and backward of the model, without a teacher.
        objective: what it is trained for, a key of `dexcore.report.objectives.OBJECTIVES`.
    """

    mlp: str
    order_sha256: str
    parameters: int
    inference_flops: int
    training_flops: int
    objective: str = "mae"  # before there were others

    @classmethod
    def read(cls, path: str | Path) -> "Comparison | None":
        """Read what the trainer wrote; None where there is no such file, as in folders of older versions.

        Raises:
            ValueError: the file (named) is damaged.
        """
        path = Path(path)
        if not path.is_file():
            return None
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: damaged, expected the numbers of a comparison ({error})") from error
        if found.mlp not in KINDS:
            raise ValueError(f"{path}: mlp is {found.mlp!r}, expected one of {', '.join(KINDS)}")
        if found.objective not in OBJECTIVES:
            raise ValueError(f"{path}: objective is {found.objective!r}, expected one of {', '.join(OBJECTIVES)}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Plain text for a terminal."""
        return [
            f"Model: {KINDS[self.mlp]}",
            *([f"  objective: {OBJECTIVES[self.objective].what}"] if self.objective != "mae" else []),
            f"  {self.costs()}",
            f"  images, crops and masks: {self.order_sha256[:16]}",
        ]

    def costs(self) -> str:
        """What the model costs, in words."""
        inference, training = (f"{flops / 1e9:.4g}" for flops in (self.inference_flops, self.training_flops))
        return (
            f"{self.parameters:,} parameters; {inference} GFLOPs an image at inference, {training} in a training step "
            "(matrix products)"
        )
