"""Spoilt YAML files through the command line: a configuration or a dry run, or an error in words; nothing that a file
says runs."""

import contextlib
import io
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from runs import tiny

from dexcore.engine.config import ConfigError
from dexcore.engine.config_file import read_yaml, to_yaml
from dexcore.train.command import main
from dexcore.train.config import PRESETS

GOOD = to_yaml(PRESETS["laptop"])
FILES = 300
LONGEST_MESSAGE = 2000
CANARY = "ran"  # what a file's code would leave in the working folder

_LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 8)}]\n" for i in range(1, 7))
VALUES = [
    "", "null", "~", "true", "yes", "0", "-1", "1", "3", "1.5", "-0.0", "1e-4", "1e400", ".nan", ".inf", "-.inf",
    "9" * 25, "-" + "9" * 400, "9" * 400, "9" * 5000, "0x" + "f" * 5000, "12:30:45", "0o17", "2024-01-01", "2024-13-45",
    "''", "text", "kd", "auto", "x" * 10_000, '"\\0"', '"\\ud800"', '"\\U00110000"', "größe", "'\u202e'",
    "[]", "{}", "[1, true]", "[[1, 2]]", "[4, 4, 4, 4]", "[8, 4, 2]", "[9, .nan]", "&a [*a]", "&a {a: *a}",
    "!!binary aGVsbG8=", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str 3", "!!int ''",
    "!!int x", "!!float ''", "!!bool maybe", "!!timestamp x", "!!null 3", "!unknown 3", "*missing", "{? [1]: 2}",
    "{? {a: 1}: 2}", "{<<: 3}", "=", "@", "`", "%", "|\n  block", "[" * 30 + "1" + "]" * 30, "[" * 5000,
]  # fmt: skip
CODE = [
    f"!!python/object/apply:os.mkdir [{CANARY}]",
    f"!!python/object/apply:builtins.open [{CANARY}, w]",
    f"!!python/object/apply:builtins.exec ['import os; os.mkdir(\"{CANARY}\")']",
    "!!python/object/apply:os.getcwd []",
    "!!python/name:os.system ''",
    "!!python/module:os ''",
    "!!python/object:dexcore.train.config.ModelConfig {dim: 3}",
    "!!python/tuple [1, 2]",
    "!<tag:yaml.org,2002:python/object/apply:os.getcwd> []",
]


def other_value(rng, good):
    return replace_value(rng, good, rng.choice(VALUES))


def code(rng, good):
    return replace_value(rng, good, rng.choice(CODE))


def replace_value(rng, good, value):
    """``good`` with one field's value as ``value``; at times a whole section's, the file's, or a key's."""
    place = rng.random()
    if place < 0.05:
        return value
    if place < 0.1:
        return f"? {value}\n: 3\n{good}"
    if place < 0.2:
        return f"{rng.choice(['model', 'data', 'run'])}: {value}\n"
    lines = good.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if not line.endswith(":")])
    lines[at] = f"{lines[at].partition(':')[0]}: {value}"
    return "\n".join(lines) + "\n"


def drop_lines(rng, good):
    return "".join(line for line in good.splitlines(keepends=True) if rng.random() < 0.9)


def rename_key(rng, good):
    lines = good.splitlines()
    at = rng.randrange(len(lines))
    key, colon, rest = lines[at].partition(":")
    lines[at] = rng.choice([key + "s", key[:-1], key + " ", key.upper(), key + "." + "x" * 9999]) + colon + rest
    return "\n".join(lines)


def repeat_line(rng, good):
    lines = good.splitlines()
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return "\n".join(lines)


def truncate(rng, good):
    return good[: rng.randrange(len(good))]


def flip_bits(rng, good):
    content = bytearray(good.encode())
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.choice([0, 0, 0, 1, 2, 3, 4, 5, 6, 7])
    return bytes(content)


def noise(rng, good):
    return rng.randbytes(rng.randint(1, 3000))


def nest(rng, good):
    depth = rng.choice([5, 50, 400, 3000])
    return rng.choice(["model: " + "{dim: " * depth + "3" + "}" * depth, "- " * depth + "3", "[" * depth])


def anchors(rng, good):
    return rng.choice(
        [
            f"l0: &l0 [lol, lol]\n{_LAUGHS}",
            f"{_LAUGHS.replace('*l0', 'lol')}model: *l6\n",
            f"model:\n  top_k: &l0 [1, 1, 1, 1]\n{_LAUGHS}",
            "model: &m {dim: 64, heads: 4}\ndata: *m\n",
            "&all {model: *all}",
            "base: &b {tau: 0.7}\nmodel: {<<: *b}\n",
            "model: {<<: {tau: 0.7}}\n",
        ]
    )


def of_a_newer_version(rng, good):
    return rng.choice(
        ["version: 2\n" + good, good.replace("model:\n", "model:\n  rope: true\n"), "---\n".join([good] * 2)]
    )


def numbers(rng, good):
    """Every whole number of a section multiplied, a few decimals swapped for what is no number."""
    scale = rng.choice([0, -1, 3, 10**6, 10**12, 2**31, 2**63, 10**200])
    values = yaml.safe_load(good)
    section = values[rng.choice(["model", "data", "optimizer", "dex", "run"])]
    for key, value in section.items():
        if type(value) is int and rng.random() < 0.6:
            section[key] = value * scale
        elif type(value) is float and rng.random() < 0.2:
            section[key] = rng.choice([float("nan"), float("inf"), -value, value * 1e300, 0.0])
    return yaml.safe_dump(values)


def extremes(rng, good):
    """A few fields at the ends of what their kind can be, most of which their checks let through."""
    values = yaml.safe_load(good)
    for _ in range(rng.randint(1, 3)):
        section = values[rng.choice(["model", "data", "optimizer", "dex", "run"])]
        key = rng.choice([key for key, value in section.items() if type(value) in (int, float)])
        floats = [0.0, 5e-324, 1e-30, 0.3, 1 - 2**-53, 1.0, 30.0, 1e30, 1e308]
        section[key] = rng.choice(floats if type(section[key]) is float else [0, 1, 2, 3, 7, 2**32 - 1, 2**63 - 1])
    return yaml.safe_dump(values)


MUTATIONS = [
    other_value, other_value, other_value, code, drop_lines, rename_key, repeat_line, truncate, flip_bits, noise, nest,
    anchors, of_a_newer_version, numbers, extremes,
]  # fmt: skip
ALWAYS_REFUSED = {code, noise, of_a_newer_version, repeat_line}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(argv):
    told, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(shown):
        exit_code = main(argv)
    return exit_code, shown.getvalue(), told.getvalue()


def feed(count, seed, folder):
    """Feed ``count`` files to the command; how many were refused, by kind."""
    rng = random.Random(seed)
    config, out = folder / "spoilt.yaml", folder / "run"
    out.mkdir()
    fed, refused = dict.fromkeys(MUTATIONS, 0), dict.fromkeys(MUTATIONS, 0)
    for number in range(count):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        content = mutation(rng, GOOD)
        resumed = rng.random() < 0.3  # then it is the run folder's own file
        path = out / "config.yaml" if resumed else config
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        source = ["--resume", "--out", str(out)] if resumed else ["--config", str(config)]
        exit_code, shown, told = run([*source, "--print-config"])
        assert not Path(CANARY).exists(), content
        fed[mutation] += 1
        if exit_code == 0:
            assert told == "", content
            check_valid(shown, folder)
        else:
            refused[mutation] += 1
            assert (exit_code, shown) == (2, ""), content
            assert told.startswith(f"error: {path}: "), (content, told)
            assert len(told) < LONGEST_MESSAGE, content
    return fed, refused


def check_valid(shown, folder):
    """What was accepted is printed as YAML that reads back to itself, and names paths that the system takes."""
    again = folder / "again.yaml"
    again.write_text(shown)
    config = read_yaml(again, PRESETS["paper"])
    assert to_yaml(config) == shown
    for path in (config.out, config.data.store):
        with contextlib.suppress(OSError):
            os.stat(path)


def test_a_spoilt_file_is_a_configuration_or_an_error_that_names_it(tmp_path):
    fed, refused = feed(FILES, 0, tmp_path)
    assert sum(fed.values()) == FILES
    assert {kind for kind in MUTATIONS if refused[kind] == fed[kind]} >= ALWAYS_REFUSED
    assert refused[other_value] > fed[other_value] / 2
    assert FILES / 10 < sum(refused.values()) < FILES * 9 / 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_so_are_many_more(seed, tmp_path):
    feed(2000, seed, tmp_path)


# Those that change a value: of the others nothing is accepted, or what is left is a preset's.
FURTHER = [other_value, drop_lines, flip_bits, numbers, extremes, extremes, extremes]


def feed_dry_runs(count, seed, store, folder):
    """Feed ``count`` accepted files to a dry run; how many ran, and what the others were refused for."""
    rng = random.Random(seed)
    file = folder / "spoilt.yaml"
    whole = tiny(store, folder / "run", precision="fp32")
    good = to_yaml(replace(whole, model=replace(whole.model, num_experts=4, top_k=2)))
    ran, refusals = 0, []
    while ran + len(refusals) < count:
        mutation = rng.choice(FURTHER)
        content = mutation(rng, good)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            config = read_yaml(file, PRESETS["laptop"])
        except ConfigError:
            continue
        if not is_small(config):
            continue
        images = config.data.store or str(store)  # not the packages' images, which take a while to build
        exit_code, shown, told = run(["--config", str(file), "--data.store", images, "--dry-run"])
        assert not (folder / "run").exists(), content
        if exit_code == 0:
            assert shown.startswith("dry run: no run folder was written"), content
            ran += 1
        else:
            assert (exit_code, shown) == (2, ""), content
            assert told.startswith("error: "), (content, told)
            assert told.count("\n") == 1, (content, told)
            refusals.append(told)
    return ran, refusals


def is_small(config):
    """Whether a step takes less than a second: what is larger needs another machine, no other path in the code."""
    model, data = config.model, config.data
    pools = model.num_experts if isinstance(model.num_experts, int) else max(model.num_experts)
    widths = model.depth * model.dim**2 * (4 + 2 * model.mlp_ratio * (pools + 1))
    widths += 12 * model.decoder_depth * model.decoder_dim**2
    tokens = data.batch_size * (model.image_size // model.patch_size) ** 2
    return (
        tokens * widths < 1e9
        and data.batch_size * model.image_size**2 < 1e6
        and data.batch_size <= 256
        and data.epoch_size <= 10_000
    )


def test_what_is_accepted_also_runs_or_is_refused_in_a_line(store, tmp_path):
    ran, refusals = feed_dry_runs(30, 0, store, tmp_path)
    assert ran > 15, refusals


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_so_is_much_more_of_it(seed, store, tmp_path):
    feed_dry_runs(400, seed, store, tmp_path)


@pytest.mark.parametrize("text", CODE[:3])
def test_the_canary_would_tell_of_code_that_ran(text):
    yaml.unsafe_load(text)
    assert Path(CANARY).exists()
