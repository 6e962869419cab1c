"""What a model needs is compiled before its first step, and the model is left as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import torch
from fake_gpu import pretend
pretend("sm_90")
from dexcore.kernels import warm_up
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder

shape = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0, backend="triton")
model = MaskedAutoencoder(DEXVisionTransformer(**shape), decoder_dim=32, decoder_depth=1, decoder_heads=2).train()
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
drawn = torch.get_rng_state()
with torch.autocast("cpu", dtype=torch.bfloat16):
    first = warm_up(model, (4, 3, 32, 32))
    again = warm_up(model, (3, 3, 32, 32))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.encoder.blocks[0].mlp.routing is None
    assert torch.equal(torch.get_rng_state(), drawn)
    import triton
    kernels = []
    from dexcore.kernels.launch import compiling
    with compiling(kernels.append):
        loss = model(torch.zeros(5, 3, 32, 32)).loss
        loss.backward()
print(first, again, sorted({kernel.name for kernel in kernels}), sep="\\n")
"""


@pytest.mark.slow
def test_every_kernel_of_a_step_is_compiled_once_for_all_batch_sizes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again, names = done.stdout.splitlines()
    for kernel in (
        "_plan_kernel",
        "_route_forward_kernel",
        "_expert_up_kernel",
        "_grouped_rows_kernel",
        "_align_kernel",
    ):
        assert kernel in names
    for kernel in ("_expert_dact_kernel", "_expert_wgrad_kernel", "_sum_slots_kernel", "_route_grad_x_kernel"):
        assert kernel in names
    compiled = {path.parent.name for path in tmp_path.rglob("*.cubin")}
    assert len(list(tmp_path.rglob("_expert_up_kernel.cubin"))) == 1, "another batch size compiled again"
    assert len(compiled) >= 15
    assert float(again) < float(first)
