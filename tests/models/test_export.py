"""A trained model leaves PyTorch: torch.export, ONNX, AOTInductor; collapsed, in director mode, with its experts."""

import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch._inductor import aoti_compile_and_package, aoti_load_package, config
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim

from assertions import assert_close
from dexcore.nn import DEXBlock, DEXMlp, collapse, set_mode, upcycle

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
KINDS = ("collapsed", "director", "experts")
BATCH = ({0: Dim("batch", min=1, max=64)},)
EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# Darker and brighter ones, for which the routers choose differently.
IMAGES = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1)) + torch.linspace(-3, 3, 7).view(
    7, 1, 1, 1
)


def trained(kind, **kwargs):
    """As training could leave it: all experts differ, and the images want different ones."""
    model = timm.create_model("dex_vit_tiny_patch16_224", **SIZE, **{"num_experts": 3, **kwargs})
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    if model.cls_token is not None:  # else it would outweigh the image, to the router
        nn.init.zeros_(model.cls_token), nn.init.zeros_(model.pos_embed)
    model.eval()(IMAGES)
    chosen = [module.routing.indices for module in model.modules() if isinstance(module, DEXMlp)]
    assert all(len(indices[:, 0].unique()) > 1 for indices in chosen)
    for module in model.modules():
        if isinstance(module, DEXMlp):
            module.router.activation_frequency.fill_(0.5)  # as if the directors had followed
    if kind == "director":
        set_mode(model, "director")
    return collapse(model) if kind == "collapsed" else model


@torch.no_grad()
def infer(model, images):
    """What an exported program is held to; where gradients are wanted experts are summed in another order."""
    return model(images)


def export(model):
    return torch.export.export(model, (EXAMPLE,), dynamic_shapes=BATCH)


def ops(program):
    return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("dexcore.")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_computes_the_same_for_any_number_of_images(kind, tmp_path):
    model = trained(kind)
    program = export(model)
    assert ops(program) == ({"dexcore.route.default", "dexcore.expert_mlp.default"} if kind == "experts" else set())
    keeps = {node.args[7] for node in program.graph.nodes if str(node.target) == "dexcore.expert_mlp.default"}
    assert keeps <= {"nothing"}
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 7):
        assert torch.equal(again(IMAGES[:count]), infer(model, IMAGES[:count]))


@pytest.mark.parametrize("way", ["block_fn", "mlp_layer", "upcycle"])
def test_stock_models_export_by_every_way_in(way):
    settings = {"block_fn": partial(DEXBlock, num_experts=3), "mlp_layer": partial(DEXMlp, num_experts=3)}
    model = VisionTransformer(**SIZE, **({way: settings[way]} if way in settings else {})).eval()
    if way == "upcycle":
        upcycle(model, num_experts=3)
    assert torch.equal(export(model).module()(IMAGES), infer(model, IMAGES))


SCRIPT = """
import sys, torch
images = torch.load("images.pt")
torch.save(torch.export.load("collapsed.pt2").module()(images), "collapsed.pt")
assert "dexcore" not in sys.modules and "timm" not in sys.modules
try:
    torch.export.load("experts.pt2")
except Exception:
    pass  # torch logs why
else:
    raise SystemExit("an op that nobody defined was loaded")
import dexcore
torch.save(torch.export.load("experts.pt2").module()(images), "experts.pt")
"""


def test_a_collapsed_model_runs_with_torch_alone_and_experts_after_import_dexcore(tmp_path):
    models = {kind: trained(kind) for kind in ("collapsed", "experts")}
    for kind, model in models.items():
        torch.export.save(export(model), tmp_path / f"{kind}.pt2")
    torch.save(IMAGES, tmp_path / "images.pt")
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "torch.ops.dexcore" in run.stderr  # what is missing, by name
    for kind, model in models.items():
        assert torch.equal(torch.load(tmp_path / f"{kind}.pt"), infer(model, IMAGES))


def test_an_exported_program_with_experts_says_that_it_cannot_be_trained():
    logits = export(trained("experts")).module()(IMAGES)
    with pytest.raises(NotImplementedError, match=r"dexcore::expert_mlp is differentiable once only, through"):
        logits.sum().backward()


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        *((kind, {}) for kind in KINDS),
        ("experts", {"class_token": False, "global_pool": "avg", "pool": "mean", "act_layer": "silu", "top_k": 1}),
        ("experts", {"mlp_layer": SwiGLUPacked, "act_layer": "silu"}),
        ("collapsed", {"mlp_layer": SwiGLU, "act_layer": "silu"}),
        ("experts", {"act_layer": "quick_gelu"}),
    ],
)
def test_onnxruntime_agrees_for_any_number_of_images(kind, kwargs, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = trained(kind, **kwargs)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (EXAMPLE,), path, dynamo=True, dynamic_shapes=BATCH, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    reference = model.double()
    for count in (1, 7):
        (logits,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:count].numpy()})
        assert_close(torch.from_numpy(logits), reference(IMAGES[:count].double()), bound=1e-5)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export", "ignore::torch.jit.TracerWarning")
def test_onnxs_legacy_exporter_is_refused_and_takes_the_other_kinds(gradients, tmp_path):
    pytest.importorskip("onnx")
    legacy = partial(torch.onnx.export, args=(EXAMPLE,), f=tmp_path / "model.onnx", dynamo=False)
    models = {kind: trained(kind) for kind in KINDS}
    with torch.set_grad_enabled(gradients):
        with pytest.raises(NotImplementedError, match=r"^torch\.onnx\.export .*dynamo=True") as info:
            legacy(models["experts"])
        legacy(models["collapsed"]), legacy(models["director"])
    assert len(str(info.value)) < 300


def has_compiler():
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("kind", ["collapsed", "experts"])
def test_an_aot_inductor_package_computes_the_same_for_any_number_of_images(kind, tmp_path, monkeypatch):
    model = trained(kind)
    monkeypatch.setenv("CI", "true")  # there Inductor refuses ops that have a decomposition
    package = aoti_compile_and_package(export(model), package_path=str(tmp_path / "model.pt2"))
    compiled = aoti_load_package(package)
    reference = trained(kind).double()
    reference.load_state_dict(model.state_dict())
    for count in (1, 7):
        assert_close(compiled(IMAGES[:count]), reference(IMAGES[:count].double()), bound=1e-5)


def test_without_a_compiler_aot_inductor_says_so(tmp_path):
    program = export(trained("collapsed"))
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(Exception, match="No working C\\+\\+ compiler"),
    ):
        aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
