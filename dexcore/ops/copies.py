"""Half-precision copies of float32 parameters, kept for as long as they are true.

A forward under autocast needs them; several between two optimizer steps need the same ones (micro-batches, activation
checkpointing, evaluation), and `group_ema_` writes those of the step to come on its way.

A copy is true while the parameter is the same object with the same storage, address, shape and version, and no
optimizer of the process has made a step since: some write past the version, and so do weight averages that are written
through ``.data`` after a step. A layer that goes from training to evaluation or back forgets its copies (`forget`):
averages are swapped in and out there. Any other write through ``.data`` or by a kernel of one's own is not seen, as
autograd does not see it; `torch.autograd.graph.increment_version` tells both.

Copies are kept of `torch.nn.Parameter` alone, and of none

- while FSDP2 shards any module of the process: it fills its parameters anew without a new version;
- that a CUDA graph was captured with: replays change it without a word. While a graph is captured everything is cast,
  into memory of the graph;
- once torch.compile has made CUDA graphs in the process (mode="reduce-overhead"): what they are warmed up with may not
  outlive a call.
"""

import functools
import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

HALVES = (torch.bfloat16, torch.float16)
_CPU = torch.device("cpu")
_ROOM = 64  # elements: where a copy may begin in the memory that several share


# What a parameter was like when its copy was written: version, address, shape, whether it was contiguous, and the steps
# that optimizers had made.
_Seen = tuple[int, int, torch.Size, bool, int]


@dataclass
class _Kept:
    """A parameter's copy."""

    of: "weakref.ref[Tensor]"
    storage: StorageWeakRef  # of the parameter: none takes its place while this is there
    half: Tensor | None  # None: the parameter's copies are never kept
    stream: int  # that the copy was made on
    seen: _Seen | None  # None: the copy is not true
    asked: bool = True  # since `to_write` gave it out


_kept: dict[int, _Kept] = {}  # by the parameter's id; none outlives its parameter
_lock = Lock()  # autograd's threads ask too
_steps = 0


@torch.no_grad()
def half_copies(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """The tensors in ``dtype``: float32 parameters by their kept copies, where these are true.

    All parameters that are cast are cast by one launch of a Triton kernel. No gradient flows back. The copies are
    shared: nobody may write them. A later `group_ema_` does, and a backward that saved one before raises an error.

    Args:
        tensors: on one device; give the parameters themselves, since a copy is kept by the object, or what `detach`
            makes of them. None stays None, and what has ``dtype`` already is returned as it is.
        dtype: what is not float32 to half precision is cast by `torch.Tensor.to`, as is what is no parameter; neither
            is kept.
    """
    from dexcore.kernels.launch import is_compiling
    from dexcore.kernels.tables import is_capturing

    found: list[Tensor | None] = list(tensors)
    anew: list[int] = []
    sources: list[Tensor] = []
    device = next((tensor.device for tensor in tensors if tensor is not None), _CPU)
    capturing, stream = is_capturing(device), _stream(device)
    with _lock:
        may_reuse, in_graph = _may_keep_any() and not capturing, capturing or _with_graphs_of_torch()
        for i, tensor in enumerate(tensors):
            if tensor is None or tensor.dtype == dtype:
                continue
            parameter = _parameter_of(tensor)
            if may_reuse and (copy := _true_copy(parameter, dtype, stream)) is not None:
                found[i] = copy
            elif dtype in HALVES and _is_plain(tensor) and type(parameter) is nn.Parameter:  # it stays where it is
                anew.append(i)
                sources.append(tensor)
            else:
                found[i] = tensor.to(dtype)
        if not anew:
            return found
        if capturing:
            for source in sources:
                _never_keep(source)
        else:
            _let_go(sources)
        for i, source, copy in zip(anew, sources, _cast(sources, dtype, in_graph), strict=True):
            found[i] = copy
            if not capturing:
                _keep(source, copy, is_true=not is_compiling())
    return found


def graph_copies(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """While a CUDA graph is captured, `half_copies` that a forward hands to its backward, which finds none kept; else,
    and in compiled code, the weights as they are."""
    from dexcore.kernels.tables import is_capturing

    if torch.compiler.is_compiling() or not is_capturing(weights[0].device):
        return list(weights)
    return [half for half in half_copies(weights, dtype) if half is not None]


def to_write(directors: Sequence[Tensor], experts: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Of what `group_ema_` is given, the copies that it should write, all of one dtype; None for no copy.

    Those that a forward asked for since the last call, and that the move leaves untrue: directors', and experts' that
    changed since they were copied. They are untrue until `written` says otherwise.
    """
    from dexcore.kernels.tables import is_capturing

    dtypes: set[torch.dtype] = set()

    def wanted(tensor: Tensor, changes: bool) -> Tensor | None:
        if is_capturing(tensor.device):
            _never_keep(tensor)
            return None
        kept = _of(tensor)
        if kept is None or kept.half is None or not kept.asked:
            return None
        half = kept.half
        same_place = _lies_as_before(kept, tensor, _stream(tensor.device)) and half.shape == tensor.shape
        still_true = not changes and kept.seen == _seen(tensor)
        if not _may_keep(tensor) or not same_place or still_true or (dtypes and half.dtype not in dtypes):
            return None
        dtypes.add(half.dtype)
        kept.seen, kept.asked = None, False
        return half

    with _lock:
        return [wanted(tensor, True) for tensor in directors], [wanted(tensor, False) for tensor in experts]


def written(tensors: Sequence[Tensor], copies: Sequence[Tensor | None]) -> None:
    """The copies that `to_write` gave out are true of the tensors as they are now."""
    from dexcore.kernels.launch import is_compiling

    torch.autograd.graph.increment_version([copy for copy in copies if copy is not None])
    if is_compiling():
        return
    with _lock:
        for tensor, copy in zip(tensors, copies, strict=True):
            kept = _of(tensor)
            if copy is not None and kept is not None and kept.half is copy:
                kept.seen = _seen(tensor)


def _is_plain(tensor: Tensor) -> bool:
    """Whether the kernel can read it: a tensor with memory of its own, float32, contiguous."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type in ("cuda", "cpu")
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
    )


def _may_keep(tensor: Tensor) -> bool:
    """Whether its version tells all writes."""
    return (
        type(tensor) is nn.Parameter
        and _is_plain(tensor)
        and tensor.is_leaf
        and not tensor.is_inference()
        and _may_keep_any()
    )


def _may_keep_any() -> bool:
    """Not while FSDP2 manages a module, since any parameter may be one of those that it fills; nor beside CUDA graphs
    of torch.compile.

    Nor where modules are converted by swapping parameters, which refuses those that a weak reference points to.
    """
    state = sys.modules.get("torch.distributed._composable_state")
    with_fsdp = state is not None and bool(getattr(state, "_module_state_mapping", True))
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    return not (with_fsdp or swaps or _with_graphs_of_torch())


def _with_graphs_of_torch() -> bool:
    """Whether torch.compile has made CUDA graphs in this process: only then it imports this."""
    return "torch._inductor.cudagraph_trees" in sys.modules


def _of(tensor: Tensor) -> _Kept | None:
    kept = _kept.get(id(tensor))
    return kept if kept is not None and kept.of() is tensor else None


def _parameter_of(tensor: Tensor) -> Tensor:
    """The kept parameter that a tensor is another name of, as it is when activation checkpointing gives it to a
    backward; else the tensor itself.
    """
    if type(tensor) is not Tensor or not _is_plain(tensor) or tensor.is_inference():
        return tensor
    for kept in _kept.copy().values():
        if kept.seen is None or kept.seen[:3] != (tensor._version, tensor.data_ptr(), tensor.shape):
            continue
        parameter = kept.of()
        if parameter is not None and kept.storage.cdata == tensor.untyped_storage()._cdata:
            return parameter
    return tensor


def _true_copy(tensor: Tensor, dtype: torch.dtype, stream: int) -> Tensor | None:
    kept = _of(tensor)
    if kept is None or kept.half is None:
        return None
    kept.asked = True
    if kept.half.dtype != dtype or kept.seen != _seen(tensor):
        return None
    return kept.half if _lies_as_before(kept, tensor, stream) else None


def _seen(tensor: Tensor) -> _Seen:
    return tensor._version, tensor.data_ptr(), tensor.shape, tensor.is_contiguous(), _steps


def _lies_as_before(kept: _Kept, tensor: Tensor, stream: int) -> bool:
    """In the same storage, and used on the same stream."""
    return kept.stream == stream and kept.storage.cdata == tensor.untyped_storage()._cdata


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _cast(sources: Sequence[Tensor], dtype: torch.dtype, in_graph: bool) -> list[Tensor]:
    """Copies in new memory that they share."""
    from dexcore.kernels.cast import cast_all, is_known

    room = [-(-source.numel() // _ROOM) * _ROOM for source in sources]
    with torch.inference_mode(False):  # a training forward may ask for them next
        memory = torch.empty(sum(room), dtype=dtype, device=sources[0].device)
        parts = memory.split(room)
        # Each with a version of its own, which views of one tensor do not have.
        copies = [p[: s.numel()].view(s.shape).data for p, s in zip(parts, sources, strict=True)]
    if in_graph and not is_known(sources, copies):  # a table cannot be built now, or would outlive the call
        return [source.to(dtype) for source in sources]
    cast_all(sources, copies)
    return copies


def _let_go(sources: Sequence[Tensor]) -> None:
    """Before their copies are made anew, give their memory back: theirs, and that of untrue ones that share it; and
    copies of parameters whose storage is gone.
    """
    old = [kept for source in sources if (kept := _of(source)) is not None and kept.half is not None]
    shared = {kept.half.untyped_storage()._cdata for kept in old if kept.half is not None}
    for key, kept in _kept.copy().items():  # a copy: parameters may die meanwhile
        parameter = kept.of()
        untrue = parameter is not None and kept.seen != _seen(parameter)
        shares = kept.half is not None and untrue and kept.half.untyped_storage()._cdata in shared
        if shares or kept.storage.expired() or any(kept is one for one in old):
            _kept.pop(key, None)


def forget(tensors: Iterable[Tensor]) -> None:
    """Their copies are made anew when a forward asks for them next: for writes that nothing else tells."""
    with _lock:
        for tensor in tensors:
            if (kept := _of(tensor)) is not None and kept.half is not None:
                kept.seen = None


def kept_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory that holds their copies."""
    with _lock:
        found = [kept.half for tensor in tensors if (kept := _of(tensor)) is not None and kept.half is not None]
    return sum({half.untyped_storage()._cdata: half.untyped_storage().nbytes() for half in found}.values())


def drop_all() -> None:
    """Give the memory of every copy back."""
    with _lock:
        for key in [key for key, kept in _kept.items() if kept.half is not None]:
            _kept.pop(key, None)


def _keep(tensor: Tensor, copy: Tensor | None, is_true: bool = False) -> None:
    """Keep a copy."""
    if not _may_keep(tensor) or ((kept := _of(tensor)) is not None and kept.half is None):
        return
    _count_steps()
    key = id(tensor)

    def drop(of: "weakref.ref[Tensor]", all_kept: dict[int, _Kept] = _kept) -> None:
        if (kept := all_kept.get(key)) is not None and kept.of is of:
            del all_kept[key]

    storage, seen = StorageWeakRef(tensor.untyped_storage()), _seen(tensor) if is_true else None
    _kept[key] = _Kept(weakref.ref(tensor, drop), storage, copy, _stream(tensor.device), seen)


def _never_keep(tensor: Tensor) -> None:
    """A CUDA graph holds the parameter."""
    _kept.pop(id(tensor), None)
    _keep(tensor, None)


@functools.cache
def _count_steps() -> None:
    """From the first copy on."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    from dexcore.kernels.tables import is_capturing

    global _steps
    with _lock:
        _steps += 1
        if not is_capturing(torch.device("cuda")):
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                _never_keep(parameter)
