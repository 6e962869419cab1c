"""The rule and the committed table of tile shapes."""

import json
from types import SimpleNamespace

import pytest
import torch

from dexcore.kernels import configs
from dexcore.kernels.configs import (
    DTYPES,
    MULTIPROCESSORS,
    SHARED_MEMORY,
    TABLE_FILE,
    Gemm,
    Key,
    LayerConfig,
    UnsupportedDeviceError,
    architecture_of,
    can_describe,
    check,
    layer_config,
    multiprocessors_of,
    read_table,
    write_table,
)

WIDTHS = [1, 15, 16, 40, 64, 192, 384, 768, 1000, 1024, 1280, 3072, 4096]
KEY = Key("sm_90", 768, 3072, torch.bfloat16)
CONFIG = LayerConfig(*[Gemm(128, 128, 64, 8, 3)] * 3, Gemm(128, 64, 32, 4, 4, True), Gemm(64, 128, 64, 8, 3))
ENTRY = {**KEY._asdict(), "dtype": "bfloat16", **CONFIG._asdict()}


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rule_fits_every_layer_and_architecture(architecture, dtype):
    for width in WIDTHS:
        for hidden in WIDTHS:
            check(Key(architecture, width, hidden, dtype), layer_config(architecture, width, hidden, dtype))


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rules_tiles_are_not_larger_than_a_small_layer(architecture, dtype):
    config = layer_config(architecture, 32, 64, dtype)
    assert config.up.block_n == config.dact.block_n == 64
    assert config.up.block_k <= 32
    assert config.dact.block_k <= 32
    assert config.down.block_n == config.dx.block_n == 32
    assert (config.wgrad.block_m, config.wgrad.block_n) == (32, 32)  # of both gradients, [64, 32] and [32, 64]
    assert {gemm.block_n for gemm in layer_config(architecture, 1, 1, dtype)} == {16}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [(768, 3073), (760, 3072)])
def test_rows_that_are_not_aligned_get_less_of_a_tile_a_thread(dtype, layer):
    for odd, even in zip(layer_config("sm_90", *layer, dtype), layer_config("sm_90", 768, 3072, dtype), strict=True):
        assert odd.block_m * odd.block_n / odd.warps < even.block_m * even.block_n / even.warps


def test_float32_has_smaller_tiles_than_bf16():
    single, half = (layer_config("sm_90", 768, 3072, dtype) for dtype in (torch.float32, torch.bfloat16))
    for a, b in zip(single, half, strict=True):
        assert a.block_m * a.block_n * a.block_k < b.block_m * b.block_n * b.block_k


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("architecture", "layer", "broad"),
    [
        ("sm_90", (768, 3072), {"down", "dx", "wgrad"}),
        ("sm_90", (1280, 5120), {"down", "dx", "wgrad"}),
        ("sm_90", (768, 2944), {"down", "dx"}),  # the gradients have 2,944 columns too, eleven tiles and a half
        ("sm_90", (896, 3584), set()),  # 896 columns would fill three and a half
        ("sm_90", (384, 1536), set()),  # 18 such tiles an expert: many multiprocessors would idle
        ("sm_90", (192, 768), set()),
        ("sm_90", (768, 3080), set()),
        ("sm_80", (768, 3072), set()),
        ("sm_100", (768, 3072), set()),
    ],
)
def test_tiles_are_broad_on_hopper_where_they_fill_the_chip_and_their_epilogue_is_short(
    dtype, architecture, layer, broad
):
    tiles = layer_config(architecture, *layer, dtype)._asdict()
    wide = {name for name, tile in tiles.items() if (tile.block_m, tile.block_n) == (128, 256)}
    assert wide == (set() if dtype == torch.float32 else broad)


def test_under_the_interpreter_tiles_are_small():
    assert set(layer_config("interpreter", 768, 3072, torch.float32)) == {Gemm(32, 32, 32, 4, 1, described=True)}
    assert set(layer_config("interpreter", 760, 3072, torch.float32)) == {Gemm(32, 32, 32, 4, 1)}


def test_every_architecture_has_a_number_of_multiprocessors():
    assert MULTIPROCESSORS.keys() == {*SHARED_MEMORY, "interpreter"}
    assert min(MULTIPROCESSORS.values()) > 0


@pytest.mark.parametrize("architecture", [*SHARED_MEMORY, "interpreter"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rule_describes_all_operands_of_a_layer_wherever_they_can_be(architecture, dtype):
    for width in WIDTHS:
        for hidden in WIDTHS:
            config = layer_config(architecture, width, hidden, dtype, "tf32")
            can = can_describe(architecture, width, hidden, dtype, config)
            assert {gemm.described for gemm in config} == {can}
            if can:
                for size in (width, hidden):
                    assert size * dtype.itemsize % 16 == 0
                    assert all(size % gemm.block_k == 0 for gemm in config[:4])


@pytest.mark.parametrize(
    ("architecture", "width", "hidden", "dtype", "can"),
    [
        ("sm_90", 768, 3072, torch.bfloat16, True),
        ("sm_100", 768, 3072, torch.float32, True),
        ("interpreter", 768, 3072, torch.float16, True),
        ("sm_80", 768, 3072, torch.bfloat16, False),  # the copying engine came after it
        ("gfx942", 768, 3072, torch.bfloat16, False),
        ("sm_90", 800, 3072, torch.bfloat16, False),  # twelve steps of 64 and a half: the next expert's Inf times zero
        ("sm_90", 768, 3104, torch.bfloat16, False),
    ],
)
def test_descriptors_need_the_chip_and_whole_steps(architecture, width, hidden, dtype, can):
    assert can_describe(architecture, width, hidden, dtype, CONFIG) == can


@pytest.mark.parametrize("name", ["up", "down", "dact", "dx"])
def test_descriptors_need_whole_steps_of_every_kernel_along_k(name):
    tiles = LayerConfig(*[Gemm(128, 128, 32, 8, 3)] * 5)
    assert can_describe("sm_90", 96, 160, torch.bfloat16, tiles)
    longer = tiles._replace(**{name: Gemm(128, 128, 64, 8, 3)})
    assert not can_describe("sm_90", 96, 160, torch.bfloat16, longer)


@pytest.mark.parametrize(
    ("dtype", "width", "can"),
    [(torch.float32, 4, True), (torch.float32, 2, False), (torch.bfloat16, 8, True), (torch.bfloat16, 4, False)],
)
def test_descriptors_need_rows_of_whole_16_bytes(dtype, width, can):
    tiles = LayerConfig(*[Gemm(16, 32, 1, 4, 1)] * 5)
    assert can_describe("sm_90", width, 64, dtype, tiles) == can
    assert can_describe("sm_90", 64, width, dtype, tiles) == can


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sm_75", 768, 3072, torch.float16), "architecture must be one of sm_80, .*gfx942, interpreter, got 'sm_75'"),
        (("sm_90", 768, 3072, torch.float64), "dtype must be one of .*got torch.float64"),
        (("sm_90", 0, 3072, torch.float16), "width and hidden must be at least 1, got 0 and 3072"),
    ],
)
def test_a_layer_that_the_kernels_do_not_have_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        layer_config(*arguments)


def test_the_committed_table_is_consistent():
    table = read_table(TABLE_FILE)
    assert all(layer_config(*key) == config for key, config in table.items())


def test_a_measured_layer_goes_before_the_rule(tmp_path, monkeypatch):
    write_table(tmp_path / "configs.json", {KEY: CONFIG})
    monkeypatch.setattr(configs, "TABLE_FILE", tmp_path / "configs.json")
    caches = (configs._measured, layer_config)
    for cache in caches:
        cache.cache_clear()
    try:
        assert layer_config(*KEY) == CONFIG
        assert layer_config(*KEY[:3], torch.float16) != CONFIG
        assert layer_config(KEY.architecture, KEY.width, 3056, KEY.dtype) != CONFIG
    finally:
        for cache in caches:
            cache.cache_clear()


def test_a_table_comes_back_as_it_was_written_in_the_keys_order(tmp_path):
    path = tmp_path / "configs.json"
    other = Key("gfx942", 192, 768, torch.float16)
    table = {KEY: CONFIG, other: layer_config(*other)}
    write_table(path, table)
    assert read_table(path) == table
    assert [entry["architecture"] for entry in json.loads(path.read_text())] == ["gfx942", "sm_90"]
    assert len(path.read_text().splitlines()) == 4
    write_table(path, {})
    assert read_table(path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": [64, 128, 64, 8, 3]}, "must share one block_m"),
        ({"wgrad": [96, 128, 64, 8, 3]}, "wgrad: a tile's sides must be powers of two"),
        ({"wgrad": [128, 128, 8, 8, 3]}, "wgrad: a tile's sides must be powers of two, 16 at least"),
        ({"wgrad": [128, 128, 256, 8, 1]}, "wgrad: block_k must divide the other kernels' block_m"),
        ({"width": 800}, "dx: .* cannot have tensor descriptors"),
        ({"architecture": "sm_80", "down": [128, 128, 64, 8, 3, True]}, "down: .* cannot have tensor descriptors"),
        ({"dx": [128, 128, 64, 6, 3]}, "dx: warps must be"),
        ({"dx": [128, 128, 64, 8, 0]}, "dx: warps must be .* stages at least 1"),
        ({"wgrad": [256, 256, 64, 8, 4]}, "wgrad: .* needs 262144 bytes of shared memory, sm_90 has 232448"),
        ({"architecture": "sm_75"}, "architecture must be one of"),
        ({"width": 0}, "at least 1"),
        ({"dtype": "float64"}, "incomplete or unknown fields"),
        ({"batch": 3}, "incomplete or unknown fields"),
        ({"wgrad1": ENTRY["wgrad"], "wgrad2": ENTRY["wgrad"]}, r"hidden=3072.*: tune again with .*bench\.tune"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_the_entry(tmp_path, change, message):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps([ENTRY | change]))
    with pytest.raises(ValueError, match=rf"configs\.json: .*{message}"):
        read_table(path)


def test_a_layer_may_stand_in_the_table_once(tmp_path):
    path = tmp_path / "configs.json"
    path.write_text(json.dumps([ENTRY, ENTRY]))
    with pytest.raises(ValueError, match="there twice"):
        read_table(path)


def test_a_wrong_config_is_not_written(tmp_path):
    path = tmp_path / "configs.json"
    with pytest.raises(ValueError, match="powers of two"):
        write_table(path, {KEY: CONFIG._replace(dx=Gemm(128, 100, 64, 8, 3))})
    assert not path.exists()


def test_the_interpreter_is_an_architecture():
    assert architecture_of("cpu") == "interpreter"


@pytest.fixture
def compiled(monkeypatch):
    """As in a process without the interpreter."""
    monkeypatch.setattr(configs, "INTERPRETED", SimpleNamespace(value=False))
    kept = configs._architecture, configs._multiprocessors
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_other_devices_are_refused(device):
    with pytest.raises(UnsupportedDeviceError, match=f"CUDA and ROCm devices.*TRITON_INTERPRET=1; got {device}"):
        architecture_of(device)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("major", "minor", "hip", "architecture"),
    [(8, 0, None, "sm_80"), (9, 0, None, "sm_90"), (10, 0, None, "sm_100"), (9, 4, "6.4", "gfx942")],
)
def test_a_gpus_architecture_has_the_compilers_name(monkeypatch, major, minor, hip, architecture):
    properties = SimpleNamespace(major=major, minor=minor, name="a GPU", gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert architecture_of("cuda:0") == architecture


@pytest.mark.usefixtures("compiled")
def test_a_chip_has_the_multiprocessors_that_it_has(monkeypatch):
    counts = {0: 114, 1: 132}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(multi_processor_count=counts[index])
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [multiprocessors_of(name) for name in ("cuda:0", "cuda:1", "cuda")] == [114, 132, 132]


@pytest.mark.usefixtures("compiled")
def test_an_old_gpu_is_named_with_what_is_supported(monkeypatch):
    properties = SimpleNamespace(major=7, minor=5, name="Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    with pytest.raises(UnsupportedDeviceError, match=r"support sm_80, .*gfx942; cuda:2 \(Tesla T4\) is sm_75"):
        architecture_of("cuda")


@pytest.mark.gpu
def test_this_gpu_is_supported():
    assert architecture_of("cuda") in SHARED_MEMORY


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_ieee_float32_has_no_descriptors_for_it_has_no_tensor_cores(architecture):
    ieee, tf32 = (layer_config(architecture, 768, 3072, torch.float32, precision) for precision in ("ieee", "tf32"))
    assert not any(gemm.described for gemm in ieee)
    assert all(gemm.described for gemm in tf32)
    assert [gemm[:5] for gemm in ieee] == [gemm[:5] for gemm in tf32]
    assert all(gemm.described for gemm in layer_config(configs.INTERPRETER, 768, 3072, torch.float32))


def test_a_tile_too_narrow_for_a_descriptor_has_none():
    """Whose rows of stores would be 8 bytes."""
    assert not any(gemm.described for gemm in layer_config("sm_90", 16, 16, torch.bfloat16))
    assert all(gemm.described for gemm in layer_config("sm_90", 32, 32, torch.bfloat16))
