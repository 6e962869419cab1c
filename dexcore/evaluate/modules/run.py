"""All measures of a model's modules, and of its twins beside it, as numbers for JSON; each part of them is kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dexcore.data.feed.pretrain_view import Images
from dexcore.evaluate.embedding.encode import layers_of
from dexcore.evaluate.embedding.identity import model_hash
from dexcore.evaluate.embedding.images import content_of
from dexcore.evaluate.kept import kept, key_of
from dexcore.evaluate.modules.conflict import fold_gradients
from dexcore.evaluate.modules.extraction import RANDOM, extract
from dexcore.evaluate.modules.forwards import collect
from dexcore.evaluate.modules.knockout import knock_out
from dexcore.evaluate.modules.on_task import check_task_damage, task_damage
from dexcore.evaluate.modules.part import Part
from dexcore.evaluate.modules.routing import measure_routing, routing_masses
from dexcore.evaluate.modules.sample import IMAGES, Samples, setting_of, take_samples
from dexcore.evaluate.modules.shared import DENSE, SharedSpace, measure_shared_space
from dexcore.evaluate.setting import Setting
from dexcore.evaluate.tasks import Task
from dexcore.extras import require
from dexcore.measures.bootstrap import FEWEST_CASES, Estimate
from dexcore.measures.conflict import conflict, conflict_minus
from dexcore.measures.extraction import Extraction, curve, twin_minus_own
from dexcore.measures.knockout import KnockOut, damage_bounds, own_damage, specificity
from dexcore.measures.routing import stability
from dexcore.measures.shared_space import across_minus
from dexcore.models import MaskedAutoencoder
from dexcore.nn import rule_of
from dexcore.nn.expert_mask import REROUTE

FORMAT = 1
PROTOCOL = 1  # grows when a number would come out otherwise
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        images: most of a modality and a split.
        random: draws of experts for extraction.
        instead: what stands in for an expert that is knocked out.
        precision: of forwards, as `dexcore.models.precision` has it.
        seed: of masks of patches, draws and permutations.
        task: whose probe loses experts too; None for none.
        cache: folder of features for the task.
        keep: folder where each part is kept by what it is made of, and found again; None keeps nothing.
        progress: show it on stderr.
    """

    images: int = IMAGES
    random: int = RANDOM
    instead: str = REROUTE
    precision: str = "fp32"
    seed: int = 0
    task: Task | None = None
    cache: str | None = None
    keep: Path | None = None
    progress: bool = False

    def told(self) -> dict[str, Any]:
        """What decides over all numbers but those of a task."""
        return {name: value for name, value in vars(self).items() if name not in ("task", "cache", "keep", "progress")}


def measure_modules(
    models: Mapping[str, MaskedAutoencoder],
    images: Images,
    device: torch.device,
    plan: Plan | None = None,
    say: Say = lambda line: None,
    other_seeds: Sequence[MaskedAutoencoder] = (),
) -> dict[str, Any]:
    """Measure the first model, and its twins on the same images.

    Of each model with DEX layers: routing, knock-outs, extraction, shared space; of a dense one shared space alone. Of
    all together: gradients of the weights that they share. The models are left as they were.

    Args:
        models: by name; of one image and patch size, on the device.
        images: of a store, with training and held-out images of two modalities at least.
        device: where they run.
        plan: what is measured.
        say: told what is under way.
        other_seeds: trainings of the first model from other seeds, for the stability of its experts.

    Returns:
        Numbers for JSON; what is not defined is None.

    Raises:
        StoreError: the store lacks such images.
        ValueError: the models take images of different kinds, one has no experts for a modality, or those of other
            seeds have other layers.
        TaskError: the task has masks, or nothing to probe.
        MissingExtraError: SciPy is not installed, and other seeds or a task are given.
        OSError: a part cannot be kept.
    """
    plan = plan or Plan()
    samples = take_samples(images, plan.images)
    settings = {name: setting_of(model, plan.precision, plan.seed) for name, model in models.items()}
    own, *twins = models
    seeds = {f"other seed {number}": model for number, model in enumerate(other_seeds, start=1)}
    seen = {name: setting_of(model, plan.precision, plan.seed) for name, model in seeds.items()}
    _check_alike(settings | seen, {**models, **seeds})
    _check_layers(models, seeds, samples)
    if plan.task is not None:
        check_task_damage({name: model.encoder for name, model in models.items()}, plan.task)
    if plan.keep is not None:
        plan.keep.mkdir(parents=True, exist_ok=True)
    parts = _Parts(samples, settings[own], device, plan, say)
    stable = parts.of_seeds([models[own], *other_seeds]) if other_seeds else None
    found = {name: parts.of_model(name, model) for name, model in models.items()}
    gradients = parts.of_gradients(models)
    return {
        "format": FORMAT,
        "model": own,
        "twins": twins,
        "store": {"name": images.name, "fingerprint": getattr(images, "fingerprint", "")},
        "plan": plan.told(),
        "modalities": list(samples.heldout.modalities),
        "images": {split: len(sample) for split, sample in samples._asdict().items()},
        "cases": {split: len(sample.label_g) for split, sample in samples._asdict().items()},
        "flags": _flags(samples),
        "stability": stable,
        "models": {name: one.numbers for name, one in found.items()},
        "twin_minus_model": {name: _minus(found[own], found[name], plan) for name in twins},
        "gradients": gradients,
    }


class _Parts:
    """The parts of a measurement: each is measured, or found where it was kept."""

    def __init__(self, samples: Samples, setting: Setting, device: torch.device, plan: Plan, say: Say) -> None:
        self.samples, self.setting, self.device, self.plan, self.say = samples, setting, device, plan, say
        self.images = getattr(samples.heldout.images, "fingerprint", "")

    def of_seeds(self, models: Sequence[MaskedAutoencoder]) -> dict[str, Any]:
        self.say(f"experts of {len(models)} seeds")
        return self._kept("seeds", models, lambda: Part(_stability(models, *self._how))).numbers

    def of_model(self, name: str, model: MaskedAutoencoder) -> Part:
        """All of one model; what a task's probe loses is kept apart: with another task nothing else is measured."""
        part = self._kept("model", [model], lambda: _of_model(name, model, *self._how, self.say))
        task = self.plan.task
        if task is None or not layers_of(model.encoder):
            return part
        numbers = part.numbers["knock_out"]
        if "left_out" not in numbers:
            self.say(f"{name}: probe of {task.name}")
            made_of = [task.fingerprint, content_of(task)]
            numbers = self._kept("task", [model], lambda: _of_task(model, task, self.plan), made_of).numbers
        return replace(part, numbers=part.numbers | {"task": numbers})

    def of_gradients(self, models: Mapping[str, MaskedAutoencoder]) -> dict[str, Any]:
        self.say("gradients of shared weights")
        own = list(models.values())
        return self._kept("gradients", own, lambda: Part(_gradients(models, *self._how)), list(models)).numbers

    @property
    def _how(self) -> tuple[Samples, Setting, torch.device, Plan]:
        return self.samples, self.setting, self.device, self.plan

    def _kept(
        self, kind: str, models: Sequence[MaskedAutoencoder], compute: Callable[[], Part], more: Any = None
    ) -> Part:
        if self.plan.keep is None or not self.images:
            return compute()
        made_of = [self.images, asdict(self.setting), self.plan.told(), self.device.type, more]
        key = key_of(PROTOCOL, *made_of, *map(model_hash, models))
        return kept(self.plan.keep / f"{kind}-{key}.npz", Part.load, compute)


def _check_alike(settings: Mapping[str, Setting], models: Mapping[str, MaskedAutoencoder]) -> None:
    (own, first), *others = settings.items()
    for name, setting in others:
        if setting != first or models[name].num_patches != models[own].num_patches:
            raise ValueError(f"{name}: takes other images than {own}: expected {first}, got {setting}")


def _check_layers(
    models: Mapping[str, MaskedAutoencoder], seeds: Mapping[str, MaskedAutoencoder], samples: Samples
) -> None:
    """Refuse models that could not be measured, before hours have gone into others."""
    depth, *others = [len(layers_of(model.encoder)) for model in (next(iter(models.values())), *seeds.values())]
    if seeds and (not depth or any(other != depth for other in others)):
        raise ValueError(f"other seeds: expected as many DEX layers as the model's {depth}, at least one")
    if seeds:
        require("scipy.optimize", "eval")
    for name, model in {**models, **seeds}.items():
        rule = rule_of(model)
        known = rule.modalities if rule is not None else ()
        unknown = [modality for modality in samples.heldout.modalities if modality not in known]
        if known and unknown:
            raise ValueError(f"{name}: gives experts by modality, and has none for {', '.join(unknown)} of the store")


def _flags(samples: Samples) -> list[str]:
    train, heldout = samples
    found = []
    few = [name for m, name in enumerate(heldout.modalities) if int((heldout.label_g == m).sum()) < 2]
    if few:
        found.append(f"one held-out case of {', '.join(few)}: draws of cases do not move its numbers")
    for split, sample in (("training", train), ("held-out", heldout)):
        cases = len(sample.label_g)
        if cases < FEWEST_CASES:
            found.append(f"{cases} {split} cases: intervals are too narrow")
    images = heldout.images
    there = [images.modality_names[m] for m in np.unique(images.modality).tolist()]
    left_out = [name for name in there if name not in heldout.modalities]
    if left_out:
        found.append(f"left out, without images of both splits: {', '.join(left_out)}")
    return found


def _of_model(
    name: str,
    model: MaskedAutoencoder,
    samples: Samples,
    setting: Setting,
    device: torch.device,
    plan: Plan,
    say: Say,
) -> Part:
    say(f"{name}: features and gates")
    train, heldout = (collect(model, sample, setting, device) for sample in samples)
    numbers: dict[str, Any] = {"experts": [layer.num_experts for layer in layers_of(model.encoder)]}
    extraction: Extraction | None = None
    if layers_of(model.encoder):
        say(f"{name}: routing")
        routing = measure_routing(model, samples.heldout, setting, device, collected=heldout, seed=plan.seed)
        numbers["routing"] = plain(routing)
        numbers["knock_out"] = _left_out(lambda: _knocked(name, model, samples, setting, device, plan, say))
        say(f"{name}: extraction")
        try:
            extraction = extract(
                model, samples, setting, device, random=plan.random, seed=plan.seed, progress=plan.progress
            )
            numbers["extraction"] = plain(curve(extraction, seed=plan.seed))
        except ValueError as error:
            numbers["extraction"] = {"left_out": str(error)}
    say(f"{name}: shared space")
    spaces: Mapping[str, SharedSpace] = {}
    try:
        spaces = measure_shared_space(train, heldout, samples, plan.seed)
        numbers["shared_space"] = plain(spaces)
    except ValueError as error:
        numbers["shared_space"] = {"left_out": str(error)}
    return Part(numbers, extraction, spaces)


def _of_task(model: MaskedAutoencoder, task: Task, plan: Plan) -> Part:
    found = task_damage(model.encoder, task, instead=plan.instead, cache=plan.cache, progress=plan.progress)
    return Part(plain(found))


def _stability(
    models: Sequence[MaskedAutoencoder],
    samples: Samples,
    setting: Setting,
    device: torch.device,
    plan: Plan,
) -> dict[str, Any]:
    """Of each block, over all seeds."""
    sample = samples.heldout
    masses = [routing_masses(collect(one, sample, setting, device, spaces=False), sample) for one in models]
    blocks = [stability(block, sample.label_g, seed=plan.seed) for block in zip(*masses, strict=True)]
    return {"seeds": len(models), "blocks": plain(blocks)}


def _left_out(measure: Callable[[], Any]) -> Any:
    """Numbers; or why there are none."""
    try:
        return measure()
    except ValueError as error:
        return {"left_out": str(error)}


def _knocked(
    name: str,
    model: MaskedAutoencoder,
    samples: Samples,
    setting: Setting,
    device: torch.device,
    plan: Plan,
    say: Say,
) -> dict[str, Any]:
    say(f"{name}: knock-outs")
    found = knock_out(model, samples, setting, device, instead=plan.instead, progress=plan.progress)
    low, high = damage_bounds(found, seed=plan.seed)
    return {
        "damage": plain(found.damage),
        "damage_low": plain(low),
        "damage_high": plain(high),
        "shares": plain(found.shares),
        "loss": _loss(found),
        "specificity": plain(specificity(found, seed=plan.seed)),
        "own": plain(own_damage(found, seed=plan.seed)),
    }


def _loss(found: KnockOut) -> dict[str, float]:
    """Of each modality, an image."""
    sums = [
        (found.loss_g[found.label_g == m].sum(), found.count_g[found.label_g == m].sum())
        for m in range(len(found.modalities))
    ]
    return {name: float(total / count) for name, (total, count) in zip(found.modalities, sums, strict=True)}


def _minus(own: Part, twin: Part, plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if own.extraction is not None and twin.extraction is not None:
        lost = twin_minus_own(own.extraction, twin.extraction, seed=plan.seed)
        found["extraction"] = {str(size): plain(one) for size, one in lost.items()}
    if own.spaces and twin.spaces:
        pairs = {name: twin.spaces.get(name, twin.spaces.get(DENSE)) for name in own.spaces}
        found["shared_space"] = {
            name: {
                kind: plain(across_minus(getattr(other, kind), getattr(own.spaces[name], kind), seed=plan.seed))
                for kind in ("raw", "centered")
            }
            for name, other in pairs.items()
            if other is not None
        }
    return found


def _gradients(
    models: Mapping[str, MaskedAutoencoder],
    samples: Samples,
    setting: Setting,
    device: torch.device,
    plan: Plan,
) -> dict[str, Any]:
    try:
        found = fold_gradients(models, samples.train, setting, device)
    except ValueError as error:
        return {"left_out": str(error)}
    own, *twins = found
    ones = np.ones((1, len(found[own].label_f)))
    return {
        "modalities": list(found[own].modalities),
        "weights": found[own].weights,
        "models": {
            name: {"cosines": plain(one.cosines(ones)[0])} | plain(conflict(one, seed=plan.seed))
            for name, one in found.items()
        },
        "twin_minus_model": {name: plain(conflict_minus(found[own], found[name], seed=plan.seed)) for name in twins},
    }


def plain(value: Any) -> Any:
    """Numbers as JSON holds them; what is not finite is None, and so is a number a query."""
    if isinstance(value, Estimate):
        return value.as_json()
    if is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in fields(value) if not field.name.endswith("_q")
        }
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
