"""Spoilt checkpoints of every kind: a model, or an error that names the file; nothing that a file says runs."""

import collections
import io
import json
import os
import pickle
import random
import struct
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from timm.models.vision_transformer import VisionTransformer

from dexcore.models import (
    DEXVisionTransformer,
    MaskedAutoencoder,
    ModelFileError,
    load_dense_checkpoint,
    load_reference_checkpoint,
    save_reference_checkpoint,
)

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 1.0, "num_classes": 0}
FILES = 250
LONGEST_MESSAGE = 4000
CANARY = "ran"  # what a file's code would leave in the working folder


def dex():
    return DEXVisionTransformer(**TINY, num_experts=[3, 2], top_k=1)


def autoencoder():
    return MaskedAutoencoder(dex(), decoder_dim=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Mutations of tensors: what a file holds, changed.


def drop(rng, tensors):
    for name in rng.sample(sorted(tensors), rng.randint(1, 3)):
        del tensors[name]
    return tensors


def rename(rng, tensors):
    name = rng.choice(sorted(tensors))
    new = rng.choice([name + "x", name[:-1], name.replace(".", "_") + "_", "", ".", "é" * 300, "x" * 20_000])
    return {new if key == name else key: tensor for key, tensor in tensors.items()}


def add(rng, tensors):
    name = rng.choice([*sorted(tensors), "blocks.0", "blocks.0.DEX.experts.0.fc1.weight"])
    number = rng.choice(["7", "-1", "999999999999999999999999", "0007", "x"])
    other = rng.choice([name.replace(".0.", f".{number}."), name.replace(".1.", f".{number}."), name + ".more"])
    return tensors | {other if other not in tensors else other + ".again": torch.ones(rng.choice([(), (0,), (2, 3)]))}


def reshape(rng, tensors):
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    shapes = [
        tensor.flatten()[:-1], tensor[None], tensor.flatten()[:0], torch.ones(()), torch.cat([tensor, tensor]),
        torch.zeros(0, *tensor.shape[1:]), torch.zeros(*tensor.shape[:-1], 0), torch.zeros(*tensor.shape, 1),
        torch.cat([tensor, tensor], dim=-1),
    ]  # fmt: skip
    return tensors | {name: rng.choice([shape for shape in shapes if shape.shape != tensor.shape]).contiguous()}


def retype(rng, tensors):
    kinds = [
        torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu,
        torch.int64, torch.int8, torch.uint8, torch.uint16, torch.bool, torch.complex64,
    ]  # fmt: skip
    kind = rng.choice(kinds)
    names = rng.sample(sorted(tensors), rng.choice([1, 1, len(tensors)]))
    return tensors | {name: tensors[name].to(kind) for name in names}


def pack(rng, tensors):
    """Two numbers a byte: PyTorch has the type, but no conversion from it."""
    name = rng.choice(sorted(tensors))
    return tensors | {name: torch.zeros(tensors[name].shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}


def numbers(rng, tensors):
    name = rng.choice(sorted(tensors))
    return tensors | {name: torch.full_like(tensors[name], rng.choice([float("nan"), float("inf"), 1e38]))}


ON_TENSORS = [drop, rename, add, reshape, retype, pack, numbers]


# Mutations of what only a pickle can hold.


def odd_tensor(rng, tensors):
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    kinds = [
        lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda: torch.ones((), dtype=tensor.dtype).expand(tensor.shape),
        lambda: torch.ones(()).expand(*tensor.shape[:-1], 2**40),
        lambda: torch.ones(()).expand(*tensor.shape[:1], 2**20, *tensor.shape[2:]),
        lambda: tensor.to(torch.complex64).conj(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nn.Parameter(tensor),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # prototypes
        return tensors | {name: rng.choice(kinds)()}


def odd_entry(rng, tensors):
    name = rng.choice(sorted(tensors))
    odd = [None, 3, "text", [1], {"a": 1}, {name: torch.ones(2)}, torch.Size([1]), torch.float32, b"x", set(), (1, 2)]
    circle = dict(tensors)
    circle["circle"] = circle
    return rng.choice(
        [
            tensors | {name: rng.choice(odd)},
            {**tensors, 3: torch.ones(2)},
            {**tensors, None: torch.ones(2)},
            {**tensors, (1, 2): torch.ones(2)},
            {"model": rng.choice(odd)},
            {"model": {"model": tensors}},
            list(tensors.values()),
            rng.choice(odd),
            collections.OrderedDict(sorted(tensors.items())),
            circle,
        ]
    )


class Evil:
    """What is unpickled by calling something."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


EVIL = [
    Evil(os.mkdir, (CANARY,)),
    Evil(exec, (f"import os; os.mkdir({CANARY!r})",)),
    Evil(open, (CANARY, "w")),
    Evil(torch.save, (1, CANARY)),
    Evil(torch.load, (CANARY,)),
]


def evil(rng, tensors):
    code = rng.choice(EVIL)
    name = rng.choice(sorted(tensors))
    content = rng.choice([code, {"model": code}, {**tensors, name: code}, {"model": tensors, "args": code}, [code]])
    return rng.choice(
        [pickle.dumps(content, protocol=2), saved(content), saved(content, _use_new_zipfile_serialization=False)]
    )


ON_PICKLES = [odd_tensor, odd_entry, evil]


# Mutations of a file's bytes.


def truncate(rng, content):
    return content[: rng.choice([0, 1, 8, len(content) - 1, rng.randrange(len(content))])]


def flip_bits(rng, content):
    content = bytearray(content)
    end = rng.choice([100, 2000, len(content)])  # most of what can be misread stands at the beginning
    for _ in range(rng.choice([1, 1, 5, 50])):
        content[rng.randrange(min(end, len(content)))] ^= 1 << rng.randrange(8)
    return bytes(content)


def header_length(rng, content):
    length = rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(content), rng.randrange(len(content))])
    return struct.pack("<Q", length) + content[8:]


def header(rng, content):
    """Another word in a safetensors header, or in a pickle."""
    old, new = rng.choice(
        [
            (b'"F32"', b'"F64"'), (b'"F32"', b'"F99"'), (b'offsets":[0,', b'offsets":[4,'), (b'shape":[', b'shape":[-'),
            (b"FloatStorage", b"QInt8Storage"), (b"FloatStorage", b"NoStorage"), (b"torch._utils", b"os"),
            (b"_rebuild_tensor_v2", b"_rebuild_nothing"), (b"collections", b"subprocess"), (b"cpu", b"gpu"),
        ]
    )  # fmt: skip
    changed = content.replace(old, new, rng.choice([1, -1]))
    return changed if changed != content else header_length(rng, content)


def noise(rng, content):
    return rng.choice([b"", b"\x80\x02", b"PK\x03\x04", b"{}", content[:50]]) + rng.randbytes(rng.randint(0, 2000))


ON_BYTES = [truncate, flip_bits, header_length, header, noise]
ALWAYS_REFUSED = {truncate, noise, evil, pack}


# Mutations of a saved model's config.json.


def config_text(rng, text):
    return rng.choice(
        [
            text[: rng.randrange(len(text) - 2)],
            rng.randbytes(100).decode("latin-1"),
            "[" * 100_000,
            '{"encoder":' * 100_000,
            text.replace('"', "'"),
            text.replace("{", "[").replace("}", "]"),
            "",
            "null",
            text.replace("format_version", "version"),
            text.replace('"format_version": 1', '"format_version": 2, "rope": true'),
            text.replace('"format_version": 1', '"format_version": ' + rng.choice(["9" * 5000, "1e400", "NaN", "-1"])),
        ]
    )


def config_value(rng, text):
    """One value anywhere in it replaced, removed, or a new key beside it."""
    config = json.loads(text)
    places = [(config, key) for key in config]
    said = (config["pretrained_cfg"], config["normalization"])
    for inner in (config["arguments"], config["encoder"], config["encoder"]["arguments"], *said):
        places += [(inner, key) for key in inner]
    inner, key = rng.choice(places)
    values = [
        None, True, -1, 0, 1, 3, 2**31, 10**12, 10**30, 10**400, 0.5, -1.5, 1e308, float("nan"), float("inf"), "", "x",
        "eval('1')", "VisionTransformer", [], [1], [10**9] * 2, [1] * 1000, ["x"], {}, {"a": {}}, {"class": "X"},
    ]  # fmt: skip
    change = rng.random()
    if change < 0.1:
        rng.choice([config["encoder"]["arguments"], config["arguments"]])[rng.choice(["depth", "decoder_depth"])] = (
            10**9
        )
    elif change < 0.2:
        del inner[key]
    elif change < 0.3:
        inner[rng.choice(["rope", "encoder", "arguments", "block_fn", "norm_layer", "device"])] = rng.choice(values)
    else:
        inner[key] = rng.choice(values)
    return json.dumps(config)


ON_CONFIGS = [config_text, config_value]


def saved(content, **kwargs):
    file = io.BytesIO()
    torch.save(content, file, **kwargs)
    return file.getvalue()


def spoil(rng, number, tensors):
    """A file of ``tensors`` spoilt in one way: its bytes, its suffix, and the way."""
    suffix = rng.choice([".pth", ".safetensors"])
    ways = [*ON_TENSORS, *ON_BYTES, *(ON_PICKLES * 2)]
    way = ways[number % len(ways)]
    if way in ON_PICKLES:
        suffix = ".pth"
    if way in ON_BYTES:
        whole = saved({"model": tensors}) if suffix == ".pth" else save(tensors)
        return way(rng, whole), suffix, way
    content = way(rng, dict(tensors))
    if isinstance(content, bytes):
        return content, suffix, way
    wrapped = {"model": content} if rng.random() < 0.5 else content
    return (saved(wrapped) if suffix == ".pth" else save(content)), suffix, way


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before, after):
    return before.keys() == after.keys() and all(
        tensor.dtype == after[name].dtype and torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8))
        for name, tensor in before.items()
    )


def outcome(function, *arguments):
    """What it returned, and what it raised."""
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


def is_named_error(error, path):
    text = str(error)
    return isinstance(error, ModelFileError | FileNotFoundError) and str(path) in text and len(text) < LONGEST_MESSAGE


def feed_loader(load_into, models, tensors, count, seed, folder):
    """Feed ``count`` spoilt files of ``tensors`` to a loader that fills a model; (fed, refused) by the way spoilt."""
    rng = random.Random(seed)
    fed, refused = collections.Counter(), collections.Counter()
    for number in range(count):
        content, suffix, way = spoil(rng, number, tensors)
        path = folder / f"spoilt{suffix}"
        path.write_bytes(content)
        model = rng.choice(models)
        before = state_of(model)
        fed[way] += 1
        _, error = outcome(load_into, model, path)
        if error is not None:
            assert is_named_error(error, path), (number, way.__name__, error)
            assert same(before, model.state_dict()), (number, way.__name__, error)
            refused[way] += 1
        after = model.state_dict()
        assert {name: (t.shape, t.dtype) for name, t in after.items()} == {
            name: (t.shape, t.dtype) for name, t in before.items()
        }
        assert not Path(CANARY).exists(), (number, way.__name__)
    return fed, refused


def feed_folders(count, seed, folder):
    """Feed ``count`` spoilt folders of `save_pretrained` to `from_pretrained`."""
    rng = random.Random(seed)
    model = autoencoder()
    model.set_preprocessing([0.5] * 3, [0.2] * 3, {"CT": ["hu_window"]})
    model.save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    good_weights, good_config = weights.read_bytes(), config.read_text()
    ways = [*ON_TENSORS, *ON_BYTES, *(ON_CONFIGS * 4)]
    fed, refused = collections.Counter(), collections.Counter()
    for number in range(count):
        way = ways[number % len(ways)]
        weights.write_bytes(good_weights)
        config.write_text(good_config)
        if way in ON_CONFIGS:
            config.write_text(way(rng, good_config))
        elif way in ON_BYTES:
            weights.write_bytes(way(rng, good_weights))
        else:
            weights.write_bytes(save(way(rng, load(good_weights))))
        kind = rng.choice([MaskedAutoencoder, MaskedAutoencoder, DEXVisionTransformer])
        fed[way] += 1
        again, error = outcome(kind.from_pretrained, folder)
        if error is not None:
            assert is_named_error(error, folder), (number, way.__name__, error)
            refused[way] += 1
            continue
        assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()]), (number, way.__name__)
        assert {name: t.shape for name, t in again.state_dict().items()} == {
            name: t.shape for name, t in (model if kind is MaskedAutoencoder else model.encoder).state_dict().items()
        }
    return fed, refused


def feed_authors_files(count, seed, folder):
    save_reference_checkpoint(autoencoder(), folder / "good.pth")
    tensors = torch.load(folder / "good.pth", weights_only=True)["model"]
    return feed_loader(load_reference_checkpoint, [autoencoder(), dex()], tensors, count, seed, folder)


def feed_dense_files(count, seed, folder):
    tensors = VisionTransformer(**TINY).state_dict()
    return feed_loader(load_dense_checkpoint, [autoencoder(), dex()], tensors, count, seed, folder)


FEEDS = [feed_folders, feed_authors_files, feed_dense_files]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's, of what it then refuses
@pytest.mark.parametrize("feed", FEEDS)
def test_a_spoilt_checkpoint_loads_or_is_refused_by_its_name_and_leaves_the_model_alone(feed, tmp_path):
    fed, refused = feed(FILES, 0, tmp_path)
    assert sum(fed.values()) == FILES
    assert all(refused[way] == fed[way] for way in ALWAYS_REFUSED), refused
    assert FILES / 4 < sum(refused.values()) < FILES * 0.95


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("feed", FEEDS)
def test_so_are_many_more(feed, seed, tmp_path):
    feed(3000, seed, tmp_path)


@pytest.mark.parametrize("code", EVIL[:4])
def test_the_canary_would_tell_of_code_that_ran(code):
    torch.load(io.BytesIO(saved(code)), weights_only=False)
    assert Path(CANARY).exists()
