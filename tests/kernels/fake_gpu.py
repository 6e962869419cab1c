"""A GPU that is not there: Triton compiles for it, and nothing can be launched. Not under the interpreter."""

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import dexcore.ops.backend
import dexcore.ops.experts_triton
from dexcore.kernels import configs


class _Driver:
    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def is_active(self):
        return True


def pretend(architecture):
    """From here on CPU tensors are taken for those of a GPU of this architecture ("sm_90")."""
    driver.set_active(_Driver(GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)))
    dexcore.ops.experts_triton.architecture_of = lambda device: architecture
    for module in (dexcore.ops.experts_triton, configs):  # who imports it from there follows
        module.multiprocessors_of = lambda device: configs.MULTIPROCESSORS[architecture]
    dexcore.ops.backend._device_obstacle = lambda device: ""
