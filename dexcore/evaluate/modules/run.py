"""All measures of a model's modules, and of its twins beside it, as numbers for JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from dexcore.data.feed.pretrain_view import Images
from dexcore.evaluate.embedding.encode import layers_of
from dexcore.evaluate.modules.conflict import fold_gradients
from dexcore.evaluate.modules.extraction import RANDOM, extract
from dexcore.evaluate.modules.forwards import collect
from dexcore.evaluate.modules.knockout import knock_out
from dexcore.evaluate.modules.on_task import task_damage
from dexcore.evaluate.modules.routing import measure_routing, routing_masses
from dexcore.evaluate.modules.sample import IMAGES, Samples, setting_of, take_samples
from dexcore.evaluate.modules.shared import DENSE, SharedSpace, measure_shared_space
from dexcore.evaluate.setting import Setting
from dexcore.evaluate.tasks import Task
from dexcore.measures.bootstrap import FEWEST_CASES, Estimate
from dexcore.measures.conflict import conflict, conflict_minus
from dexcore.measures.extraction import Extraction, curve, twin_minus_own
from dexcore.measures.knockout import KnockOut, damage_bounds, own_damage, specificity
from dexcore.measures.routing import stability
from dexcore.measures.shared_space import across_minus
from dexcore.models import MaskedAutoencoder
from dexcore.nn.expert_mask import REROUTE

FORMAT = 1
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
        progress: show it on stderr.
    """

    images: int = IMAGES
    random: int = RANDOM
    instead: str = REROUTE
    precision: str = "fp32"
    seed: int = 0
    task: Task | None = None
    cache: str | None = None
    progress: bool = False


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is compared between models."""

    numbers: dict[str, Any]
    extraction: Extraction | None
    spaces: Mapping[str, SharedSpace]


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
        ValueError: the models take images of different kinds, or those of other seeds have other layers.
        MissingExtraError: SciPy is not installed, and other seeds are given.
    """
    plan = plan or Plan()
    samples = take_samples(images, plan.images)
    settings = {name: setting_of(model, plan.precision, plan.seed) for name, model in models.items()}
    own, *twins = models
    seeds = {f"other seed {number}": model for number, model in enumerate(other_seeds, start=1)}
    seen = {name: setting_of(model, plan.precision, plan.seed) for name, model in seeds.items()}
    _check_alike(settings | seen, {**models, **seeds})
    stable = _stability([models[own], *other_seeds], samples, settings[own], device, plan, say) if other_seeds else None
    found = {name: _of_model(name, model, samples, settings[name], device, plan, say) for name, model in models.items()}
    say("gradients of shared weights")
    return {
        "format": FORMAT,
        "model": own,
        "twins": twins,
        "store": {"name": images.name, "fingerprint": getattr(images, "fingerprint", "")},
        "plan": {name: value for name, value in vars(plan).items() if name not in ("task", "cache", "progress")},
        "modalities": list(samples.heldout.modalities),
        "images": {split: len(sample) for split, sample in samples._asdict().items()},
        "cases": {split: len(sample.label_g) for split, sample in samples._asdict().items()},
        "flags": _flags(samples),
        "stability": stable,
        "models": {name: one.numbers for name, one in found.items()},
        "twin_minus_model": {name: _minus(found[own], found[name], plan) for name in twins},
        "gradients": _gradients(models, samples, settings[own], device, plan),
    }


def _check_alike(settings: Mapping[str, Setting], models: Mapping[str, MaskedAutoencoder]) -> None:
    (own, first), *others = settings.items()
    for name, setting in others:
        if setting != first or models[name].num_patches != models[own].num_patches:
            raise ValueError(f"{name}: takes other images than {own}: expected {first}, got {setting}")


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
) -> _Measured:
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
        if plan.task is not None:
            say(f"{name}: probe of {plan.task.name}")
            task = plan.task
            numbers["task"] = plain(
                task_damage(model.encoder, task, instead=plan.instead, cache=plan.cache, progress=plan.progress)
            )
    say(f"{name}: shared space")
    spaces: Mapping[str, SharedSpace] = {}
    try:
        spaces = measure_shared_space(train, heldout, samples, plan.seed)
        numbers["shared_space"] = plain(spaces)
    except ValueError as error:
        numbers["shared_space"] = {"left_out": str(error)}
    return _Measured(numbers, extraction, spaces)


def _stability(
    models: Sequence[MaskedAutoencoder],
    samples: Samples,
    setting: Setting,
    device: torch.device,
    plan: Plan,
    say: Say,
) -> dict[str, Any]:
    """Of each block, over all seeds."""
    say(f"experts of {len(models)} seeds")
    sample = samples.heldout
    masses = [routing_masses(collect(one, sample, setting, device, spaces=False), sample) for one in models]
    if len({len(one) for one in masses}) > 1 or not masses[0]:
        raise ValueError(f"other seeds: expected as many DEX layers as the model's {len(masses[0])}, at least one")
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


def _minus(own: _Measured, twin: _Measured, plan: Plan) -> dict[str, Any]:
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
