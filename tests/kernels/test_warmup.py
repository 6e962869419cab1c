"""What a model needs is compiled before its first step, and the model is left as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dexcore.kernels import warm_up

CODE = """
import json
import os
from pathlib import Path
import torch
from fake_gpu import pretend
pretend("sm_90")
from dexcore.kernels import warm_up
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder

shape = dict(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0, backend="triton")
encoder = DEXVisionTransformer(**shape)
model = torch.nn.Sequential(
    torch.nn.BatchNorm2d(3), MaskedAutoencoder(encoder, decoder_dim=32, decoder_depth=1, decoder_heads=2)
).train()
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
dense = torch.nn.Linear(3, 2)
drawn = torch.get_rng_state()
cubins = []
with torch.autocast("cpu", dtype=torch.bfloat16):
    for batch in (4, 3, 1, 16):
        warm_up(model, (batch, 3, 32, 32))
        cubins.append(sorted(path.name for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin")))
    warm_up(dense, (4, 3))
    warm_up(model.requires_grad_(False), (4, 3, 32, 32))
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
assert all(parameter.grad is None for parameter in model.parameters())
assert encoder.blocks[0].mlp.routing is None
assert torch.equal(torch.get_rng_state(), drawn)
print(json.dumps(cubins))
"""


@pytest.mark.slow
def test_every_kernel_of_a_step_is_compiled_once_for_all_batch_sizes_and_the_model_stays_as_it_was(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    assert all(cubins == first for cubins in others), "another batch size compiled again"
    for family in (
        *("plan", "route_forward", "expert_order", "expert_up", "grouped_rows", "expert_dact"),
        *("expert_wgrad", "gate_and_bias", "align", "sum_slots", "group_ema"),
    ):
        assert f"_{family}_kernel.cubin" in first


@pytest.mark.parametrize(
    ("model", "shape", "dtype", "error", "words"),
    [
        ("vit", (4, 3), torch.float32, TypeError, "model must be a torch.nn.Module, got 'vit'"),
        (nn.Identity(), (4, 3), torch.float32, ValueError, "model must have parameters, .* got Identity"),
        (nn.Linear(3, 2), 4, torch.float32, TypeError, "batch_shape must be a sequence of numbers"),
        (nn.Linear(3, 2), (4, 3.0), torch.float32, TypeError, "batch_shape must be a whole number, got 3.0"),
        (nn.Linear(3, 2), (0, 3), torch.float32, ValueError, "batch_shape must be at least 1, got 0"),
        (nn.Linear(3, 2), (4, 3), "bf16", TypeError, "dtype must be a torch.dtype, got 'bf16'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(model, shape, dtype, error, words):
    with pytest.raises(error, match=words):
        warm_up(model, shape, dtype)
