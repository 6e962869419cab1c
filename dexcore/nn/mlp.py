"""`DEXMlp`: a ViT block's MLP as a pool of experts with a director (the method's section 1)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from timm.layers import GluMlp, Mlp, register_notrace_module, trunc_normal_
from torch import Tensor, nn

from dexcore import ops
from dexcore.checks import check_kind, check_number, check_whole
from dexcore.nn.dense_mlp import (
    KINDS,
    activation_of,
    check_dense_mlp,
    expert_pieces,
    first_layer_pieces,
    has_rows_of_experts,
    linear_layers,
    pieces,
)
from dexcore.nn.expert_mask import DIRECTOR, REROUTE, filled_by, route_among, without_others
from dexcore.nn.mlp_checks import check_linear, check_routing_arguments, refuse_unsupported
from dexcore.nn.records import Record, Routing
from dexcore.nn.rules import RoutingRule
from dexcore.ops.activation import columns_of
from dexcore.ops.balance import balance_loss
from dexcore.ops.checks import check_choice
from dexcore.ops.copies import forget
from dexcore.ops.expert_mlp import KEEPS, PRECISIONS, compute_dtype
from dexcore.ops.library import is_exporting
from dexcore.ops.mix_align import ALIGNS
from dexcore.ops.routing import POOLS

MODES = ("experts", "director")
AUX = ("train", "always", "never")
FREQUENCY_DECAY = 0.99
_FREQUENCY_EPS = 1e-6
_DECIDED = 128.0  # temperatures above all others: what is given is chosen, and in float32 nothing else has a gate


class ExpertLinear(nn.Module):
    """R linear layers side by side: weight [R, out, in], bias [R, out]. Filled by `DEXMlp`."""

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features, **dd))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features, **dd)) if bias else None

    def extra_repr(self) -> str:
        experts, out_features, in_features = self.weight.shape
        return f"{experts} x ({in_features} -> {out_features}), bias={self.bias is not None}"


class Experts(nn.Module):
    """The pool: ``fc1`` and ``fc2`` of all experts; ``columns`` pre-activations a hidden unit."""

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int,
        bias: bool = True,
        columns: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.fc1 = ExpertLinear(num_experts, width, columns * hidden, bias, **dd)
        self.fc2 = ExpertLinear(num_experts, hidden, width, bias, **dd)


class Router(nn.Module):
    """The router's weight [R, D], no bias, and the experts' running activation frequency [R]."""

    activation_frequency: Tensor

    def __init__(self, num_experts: int, width: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width, device=device, dtype=dtype))
        self.register_buffer("activation_frequency", torch.empty(num_experts, device=device))

    def reset_parameters(self) -> None:
        trunc_normal_(self.weight, std=0.02)
        self.activation_frequency.zero_()

    def exploration_noise(self, sigma: Tensor, normal: Tensor) -> Tensor:
        """sigma (n + 1 - f / sum f): rarely used experts get a push (the method's step 3)."""
        frequency = self.activation_frequency
        return sigma * (normal + 1 - frequency / (frequency.sum() + _FREQUENCY_EPS))


@register_notrace_module  # one node in what timm traces with torch.fx
class DEXMlp(nn.Module):
    """timm's ``Mlp`` as top-k of a pool of experts, chosen for the whole image, with a director.

    The positional and first keyword parameters are timm's; ``out_features`` must equal ``in_features``. What cannot
    be honored is refused by name.

    Args:
        num_experts: R, the size of the pool.
        top_k: k, how many experts an image uses.
        tau: the router's temperature.
        pool: what the router sees: "cls", the first token, or "mean", the mean of all tokens given.
        align: the alignment loss between experts and director: "kd", "cosine" or "mse".
        mode: "experts", or "director": the director alone, at the cost of a plain MLP.
        keep: what the backward finds stored: "both", "z" or "none" (`dexcore.ops.expert_mlp`).
        precision: of float32 dot products on a GPU: "ieee", "tf32" or "tf32x3".
        backend: "auto", "triton" or "eager"; ``chosen_backend`` says what "auto" came to.
        director_layer: the MLP that the director is, and each expert has the form of: timm's ``Mlp``, or with
            ``act_layer=nn.SiLU`` a SwiGLU, timm's ``SwiGLUPacked`` (``GluMlp``) or ``SwiGLU``.

    Attributes:
        experts: ``fc1.weight`` [R, H, D], ``fc1.bias`` [R, H], ``fc2.weight`` [R, D, H], ``fc2.bias`` [R, D]. Of a
            SwiGLU fc1 has 2 H rows: the gate's, then the value's.
        director: timm's module; its parameters are trained by `update_directors`, not by gradient.
        router: ``weight`` [R, D] and the buffer ``activation_frequency`` [R].
        routing: the last forward's `Routing`; None before one and in director mode. Its losses have a gradient until
            `update_directors` or `discard_load`.
        record: what forwards leave behind (`dexcore.nn.records`); ``routing`` is read from it.
        aux: when a forward runs the director too and computes the auxiliary losses: in "train", the default,
            "always" or "never" (`dexcore.nn.set_aux`).
        router_noise: standard normal draws [B, R] for the exploration noise; None: drawn by torch.
        kept_experts: the experts that a mask leaves, int64, rising; None: all (`dexcore.nn.set_expert_mask`).
        instead: what stands in for the others: "reroute", "zero" or "director".
        routes: experts [B, k] that are given in the place of the router's (`dexcore.nn.set_routes`); None: it chooses.
        rule: by which they are given (`dexcore.nn.set_rule`); None: there is none.

    An expert that no image of the batch used gets a gradient of zeros, not None: an optimizer with momentum still
    moves it.
    """

    _sigma: Tensor
    kept_experts: Tensor | None

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool = True,
        drop: float = 0.0,
        use_conv: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        num_experts: int = 8,
        top_k: int = 2,
        tau: float = 0.5,
        pool: str = "cls",
        align: str = "kd",
        mode: str = "experts",
        keep: str = "both",
        precision: str = "ieee",
        backend: str = "auto",
        director_layer: Callable[..., nn.Module] = Mlp,
    ) -> None:
        super().__init__()
        hidden_features = in_features if hidden_features is None else hidden_features
        check_whole("in_features", in_features, 1)
        check_whole("hidden_features", hidden_features, 1)
        refuse_unsupported(in_features, out_features, norm_layer, bias, drop, use_conv)
        check_routing_arguments(num_experts, top_k, tau)
        check_choice("pool", pool, POOLS)
        check_choice("align", align, ALIGNS)
        check_choice("keep", keep, KEEPS)
        check_choice("precision", precision, PRECISIONS)
        check_choice("backend", backend, ops.backend.BACKENDS)
        self.num_experts, self.top_k, self.tau = num_experts, top_k, tau
        self.pool, self.align, self.keep = pool, align, keep
        self.precision, self.backend = precision, backend
        dd = {"device": device, "dtype": dtype}
        director = _dense_mlp(director_layer, in_features, hidden_features, act_layer=act_layer, bias=bias, **dd)
        self.activation = activation_of(director)
        columns = columns_of(self.activation)
        self.experts = Experts(num_experts, in_features, director.fc2.in_features, bias, columns, **dd)
        self.director = director
        self.router = Router(num_experts, in_features, **dd)
        # A tensor beside the float, so that a compiled model is not compiled again as sigma decays.
        self.register_buffer("_sigma", torch.zeros((), device=device), persistent=False)
        self._noise_std, self._noisy = 0.0, False
        self.register_buffer("kept_experts", None, persistent=False)
        self.instead = REROUTE
        self.router_noise: Tensor | None = None
        self.routes: Tensor | None = None
        self.rule: RoutingRule | None = None
        self.aux = "train"
        self.record = Record()
        self.init_weights()
        self.set_mode(mode)

    def reset_parameters(self) -> None:
        """Draw the director anew as nn.Linear does, and all that follows from it."""
        for layer in linear_layers(self.director).values():
            layer.reset_parameters()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Make every expert a copy of the director, and draw the router anew.

        timm calls it after it has drawn the children, the director's layers among them.
        """
        self.router.reset_parameters()
        self._sigma.fill_(self._noise_std)
        self.copy_director()

    @torch.no_grad()
    def copy_director(self) -> None:
        """Make every expert a copy of the director."""
        for expert, director in self.expert_director_pairs():
            expert.copy_(director.expand_as(expert))

    def expert_director_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(experts [R, ...], director [...]) for every parameter tensor of the FFN; for parts of them, that together
        are all, where the director has gate and value in another order or apart (`dexcore.nn.dense_mlp`).
        """
        return list(zip(expert_pieces(self.experts, self.director), pieces(self.director), strict=True))

    @property
    def routing(self) -> Routing | None:
        """The last forward's; None before one and in director mode."""
        return self.record.routing

    @property
    def chosen_backend(self) -> ops.backend.Choice | None:
        """What ran the experts in the last forward, "eager" or "triton", and why; None where none ran."""
        return self.record.chosen

    @property
    def noise_std(self) -> float:
        """Sigma of the router's exploration noise; 0 until set. Acts in training alone."""
        return self._noise_std

    @noise_std.setter
    def noise_std(self, sigma: float) -> None:
        check_number("noise_std", sigma, "finite and >= 0", lambda sigma: 0 <= sigma < math.inf)
        self._noise_std = float(sigma)
        self._noisy = sigma > 0
        self._sigma.fill_(sigma)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse a dense MLP's weights by name: with strict=False, as timm loads for another number of classes, they
        would be left out, and the experts left random.
        """
        for dense in ("fc1", "fc1_g"):
            if f"{prefix}{dense}.weight" in state_dict:
                *_, errors = args
                errors.append(
                    f"{prefix}{dense}.weight is a dense MLP's, {prefix[:-1]} is a DEX layer: load it by "
                    "dexcore.models.load_dense_checkpoint, or upcycle the dense model"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> "DEXMlp":
        """As every module's; weights that were swapped for the other mode are cast anew (`dexcore.ops.copies`)."""
        if mode != self.training:
            forget(self.parameters())
        return super().train(mode)

    def set_mode(self, mode: str) -> None:
        """Run "experts" or the "director"; what does not run, or has no gradient, is frozen."""
        check_choice("mode", mode, MODES)
        self.mode = mode
        self.director.requires_grad_(mode == "director")
        self.experts.requires_grad_(mode == "experts")
        self.router.requires_grad_(mode == "experts")

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]; leaves a `Routing` in ``routing``."""
        width = self.router.weight.shape[1]
        if x.ndim != 3 or x.shape[2] != width:
            raise ValueError(f"x must be tokens [B, N, {width}], got shape {list(x.shape)}")
        exporting = is_exporting()  # a program has no place for losses or record
        if self.mode == "director":
            self.record.forget_routing()
            if not exporting:
                self.record.chosen = None
            return self.director(x)
        fc1, fc2 = self.experts.fc1, self.experts.fc2
        weights = (fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        settings = (self.activation, self.align, self.keep, self.precision)
        with_losses = not exporting and (self.aux == "always" or (self.training and self.aux != "never"))
        missing = None
        if with_losses and self.kept_experts is None:
            weight, noise = self._router_arguments(x)
            y, align_loss, balance, gates, indices, probs = ops.dex_layer(
                *(x, weight, *weights, *self._director_tensors(), self.top_k, self.tau, noise, self.pool, *settings),
                backend=self.backend,
            )
            routing = Routing(gates, indices, probs, align_loss, balance)
        elif with_losses:
            gates, indices, probs, missing = self._route(x)
            chosen = (gates, indices)
            y, align_loss = ops.dex_mlp(
                x, *weights, *self._director_tensors(), *chosen, *settings, backend=self.backend
            )
            routing = Routing(*chosen, probs, align_loss, balance_loss(probs))
        else:
            gates, indices, probs, missing = self._route(x)
            y = ops.expert_mlp(
                x, *weights, gates, indices, self.activation, self.keep, self.precision, backend=self.backend
            )
            routing = Routing(gates, indices, probs, None, None)
        if missing is not None:
            y = filled_by(self.director(x), y, missing)
        if not exporting:
            self.record.chosen = ops.backend.choose(self.backend, x.device, compute_dtype(x), self.precision)
            learned = (self.router.weight, *weights)
            learns = any(parameter is not None and parameter.requires_grad for parameter in learned)
            self.record.write(routing, self.training, learns)
        return y

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gates, indices, probs, and the share [B] that the director fills; None where it fills none."""
        weight, noise = self._router_arguments(x)
        settings = (x, weight, self.top_k, self.tau, noise, self.pool)
        kept = self.kept_experts
        if kept is not None and self.instead == REROUTE:
            return *route_among(kept, *settings, backend=self.backend), None
        gates, indices, probs = ops.route(*settings, backend=self.backend)
        if kept is None:
            return gates, indices, probs, None
        left = without_others(kept, gates, indices)
        return left, indices, probs, (gates - left).sum(-1) if self.instead == DIRECTOR else None

    def _router_arguments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The router's weight, and what is added to its logits."""
        weight: Tensor = self.router.weight
        if self.routes is not None or self.rule is not None:
            return weight * 0, self._given_logits(x)  # in the graph: under DDP it must have a gradient
        return weight, self._noise(x) if self.training and self._noisy else None

    def _director_tensors(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """The director's as the experts', for an op that takes no module."""
        layers = linear_layers(self.director)
        for name, layer in layers.items():
            check_linear(f"director.{name}", layer)
        fc1, fc2 = next(iter(layers.values())), layers["fc2"]
        if has_rows_of_experts(self.director):
            return fc1.weight, fc1.bias, fc2.weight, fc2.bias
        weight, bias = (first_layer_pieces(self.director, kind) for kind in ("weight", "bias"))
        return torch.cat(weight), torch.cat(bias) if bias else None, fc2.weight, fc2.bias

    def _noise(self, x: Tensor) -> Tensor:
        normal = self.router_noise
        if normal is None:
            normal = torch.randn(x.shape[0], self.num_experts, device=x.device, dtype=self._sigma.dtype)
        return self.router.exploration_noise(self._sigma, normal.to(x.device))

    def _given_logits(self, x: Tensor) -> Tensor:
        """[B, R]: equal ones for the experts that are given, 0 for the others."""
        if self.routes is None:
            raise RuntimeError(
                f"experts are chosen by the rule {self.rule.kind if self.rule else ''!r}, which has to be told the "
                "images before a forward: call route_by_rule(model, names, modalities), or set_mode(model, 'director')"
            )
        if len(self.routes) != len(x):
            raise ValueError(f"routes are given for {len(self.routes)} images, x holds {len(x)}: give them anew")
        logits = self._sigma.new_zeros(len(x), self.num_experts)
        return logits.scatter(1, self.routes, _DECIDED * self.tau)

    def __getstate__(self) -> dict[str, Any]:
        """Without tensors of a batch."""
        return {**self.__dict__, "router_noise": None, "routes": None}

    def _replicate_for_data_parallel(self) -> "DEXMlp":
        if self.training:
            raise RuntimeError(
                "a DEX layer does not train under torch.nn.DataParallel, whose copies would each keep a part of the "
                "batch's use of experts; use torch.nn.parallel.DistributedDataParallel"
            )
        return super()._replicate_for_data_parallel()

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script asks for this before it reads any code."""
        raise NotImplementedError(
            "torch.jit.script cannot compile a DEX layer; use torch.export or torch.compile, torch.jit.trace under "
            "torch.no_grad(), or script the model that collapse returns"
        )

    def __getattr__(self, name: str) -> Any:
        if name in ("fc1", "fc2"):
            raise AttributeError(
                f"DEXMlp has no {name}: it has experts.{name} and director.{name} "
                "(timm's fix_init=True reads mlp.fc2 and cannot be used with it)"
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        # Nothing that a forward changes: by this, models are told apart (`dexcore.models.description`).
        return f"num_experts={self.num_experts}, top_k={self.top_k}, pool={self.pool}, mode={self.mode}"


def _dense_mlp(layer: Callable[..., nn.Module], in_features: int, hidden_features: int, **settings: Any) -> Any:
    """A `DEXMlp`'s director; TypeError or ValueError where it cannot be one."""
    kind = layer.func if isinstance(layer, partial) else layer
    if kind not in KINDS:
        raise TypeError(f"director_layer must be timm's Mlp, GluMlp (SwiGLUPacked) or SwiGLU, got {layer!r}")
    if kind is GluMlp and hidden_features % 2:
        raise ValueError(f"hidden_features of a GluMlp is gate and value together: even, got {hidden_features}")
    mlp = layer(in_features, hidden_features, **settings)
    activation_of(mlp)  # its error speaks of arguments
    check_dense_mlp("director_layer", mlp)
    return mlp


def check_class_token(model: nn.Module) -> None:
    """Raise ValueError where DEX layers would route on a first patch: in a timm model without a class token."""
    for name, module in model.named_modules():
        if not hasattr(module, "patch_embed") or getattr(module, "cls_token", module) is not None:
            continue  # no transformer, one whose tokens are not timm's, or one with a class token
        for inner, layer in module.named_modules():
            if isinstance(layer, DEXMlp) and layer.pool == "cls":
                where = f"{name}.{inner}" if name else inner
                raise ValueError(
                    f'{where} has pool="cls", but {type(module).__name__} has no class token: build it with pool="mean"'
                )


def dex_layers(model: nn.Module) -> list[DEXMlp]:
    """The model's DEX layers in order of depth; ValueError where it has none, TypeError where it is no module."""
    check_kind("model", model, nn.Module, "a torch.nn.Module")
    layers = [module for module in model.modules() if isinstance(module, DEXMlp)]
    if not layers:
        raise ValueError(f"model has no DEX layer: {type(model).__name__} holds no DEXMlp")
    return layers
