"""Which processes share a batch."""

import torch.distributed as dist

from dexcore.checks import check_kind


def process_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """``group``, or torch.distributed's default one where none is given and that is initialized.

    Returns:
        None for a process alone, a group of one included.

    Raises:
        TypeError: ``group`` is no process group.
    """
    if group is not None:
        check_kind("group", group, dist.ProcessGroup, "a process group of torch.distributed or None")
    elif dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    return group if group is not None and dist.get_world_size(group) > 1 else None
