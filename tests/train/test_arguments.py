"""From command lines and YAML files to configurations."""

import re
from dataclasses import replace

import pytest

from dexcore.engine.config import ConfigError, flat
from dexcore.engine.config_file import read_yaml, to_yaml
from dexcore.train.arguments import parse
from dexcore.train.config import PRESETS, ModelConfig, PretrainConfig


def test_without_flags_it_is_the_laptop_preset():
    assert parse([]) == PRESETS["laptop"]


def test_flags_go_before_the_file_and_the_file_before_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {tau: 0.7, align: mse}\nrun: {epochs: 30}\n")
    config = parse(["--preset", "paper", "--config", str(file), "--model.align", "cosine", "--out", "here"])
    assert (config.model.align, config.model.tau, config.run.epochs, config.out) == (
        "cosine",
        0.7,
        30.0,
        "here",
    )
    assert config.model.dim == PRESETS["paper"].model.dim


def test_every_field_is_a_flag_with_help_in_its_group(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as left:
        parse(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name, _ in flat(PretrainConfig()):
        assert f"--{name.replace('_', '-')}" in text
    assert "--preset" in text
    groups = re.findall(r"^\W+(\w+ )?options\W+$", text, re.MULTILINE)  # framed on a terminal
    assert groups == ["", "model ", "data ", "objective ", "optimizer ", "dex ", "parallel ", "run "]
    assert max(len(line) for line in text.splitlines()) <= 90
    assert "Share of the patches that is hidden" in text


def test_experts_by_block_can_be_given_on_the_command_line():
    config = parse(["--model.depth", "3", "--model.num-experts", "8", "4", "2", "--model.top-k", "1"])
    assert config.model.num_experts == (8, 4, 2)
    assert config.model.top_k == 1


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([], "none"),
        (["--model.grad-checkpointing", "selective"], "selective"),
        (["--model.grad-checkpointing=block"], "block"),
        (["--model.grad-checkpointing"], "block"),  # without a value, as it was before there were three
        (["--model.grad_checkpointing", "--model.dim", "64"], "block"),
        (["--model.no-grad-checkpointing", "--model.dim", "64"], "none"),
    ],
)
def test_what_is_computed_again_is_one_of_three_or_a_flag(given, read):
    assert parse(given).model.grad_checkpointing == read


@pytest.mark.parametrize(("written", "read"), [("true", "block"), ("false", "none"), ("selective", "selective")])
def test_a_file_that_knew_two_ways_of_checkpointing_is_read(tmp_path, written, read):
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{grad_checkpointing: {written}}}\n")
    config = parse(["--config", str(file)])
    assert config.model.grad_checkpointing == read
    assert config == replace(config, model=replace(config.model, grad_checkpointing=read))
    assert read_yaml(file, config) == config


def test_a_flag_that_does_not_exist_or_has_a_wrong_type_ends_with_its_name(capsys):
    for argv in (["--model.dimm", "3"], ["--model.dim", "wide"]):
        with pytest.raises(SystemExit) as left:
            parse(argv)
        assert left.value.code == 2
        assert argv[0].rstrip("m") in capsys.readouterr().err


def test_a_flag_out_of_range_ends_with_the_name_of_its_field(capsys):
    with pytest.raises(SystemExit) as left:
        parse(["--model.top-k", "9"])
    assert left.value.code == 2
    assert "model.top_k: expected 1 to 8" in capsys.readouterr().err


def test_fields_that_contradict_each_other_are_a_config_error():
    with pytest.raises(ConfigError, match=r"optimizer\.warmup_epochs: expected less than run\.epochs = 2"):
        parse(["--run.epochs", "2"])


def test_print_config_shows_what_can_be_read_again(tmp_path, capsys):
    argv = ["--model.depth", "2", "--model.num-experts", "8", "4", "--data.store", "größe"]
    assert parse([*argv, "--print-config"]) is None
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    assert read_yaml(file, PRESETS["paper"]) == parse(argv)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_yaml_goes_there_and_back(config, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert read_yaml(file, PretrainConfig(model=ModelConfig(dim=96))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {dimm: 3}", r"run.yaml: model.dimm: no such field in dexcore [0-9.]+; did you mean model.dim\?"),
        ("epochs: 3", r"run.yaml: epochs: no such field in dexcore [0-9.]+; did you mean run.epochs\?"),
        (
            "zebra: 3",
            r"run.yaml: zebra: no such field in dexcore [0-9.]+; a configuration has out, resume, allow_change",
        ),
        ("model: {dim: wide}", r"run.yaml: model.dim: expected a whole number, got 'wide'"),
        ("model: {dim: 19.5}", r"run.yaml: model.dim: expected a whole number, got 19.5"),
        ("model: {dim: true}", r"run.yaml: model.dim: expected a whole number, got True"),
        ("model: {align: dot}", r"run.yaml: model.align: expected 'kd' or 'cosine' or 'mse', got 'dot'"),
        ("model: {top_k: [1, x]}", r"run.yaml: model.top_k: expected a whole number, or a list of them"),
        ("optimizer: {base_lr: fast}", r"run.yaml: optimizer.base_lr: expected a number, got 'fast'"),
        ("resume: 1", r"run.yaml: resume: expected true or false, got 1"),
        ("model: 3", r"run.yaml: model: expected a mapping of fields, got 3"),
        ("[1, 2]", r"run.yaml: the file: expected a mapping of fields"),
        ("model: {top_k: 9}", r"run.yaml: model.top_k: expected 1 to 8"),
        ("a: [", r"run.yaml: cannot be read as a YAML file"),
        ("!!python/object/apply:os.getcwd []", r"run.yaml: cannot be read as a YAML file"),
        ("out: a\nresume: true\nout: b\n", r"run.yaml: out: given twice, in lines 1 and 3$"),
        ("model:\n  dim: 64\n  'dim': 64\n", r"run.yaml: model.dim: given twice, in lines 2 and 3$"),
        ("model: {dim: 64, dim: 32}", r"run.yaml: model.dim: given twice, in line 1$"),
        ("model: &m {dim: 64}\nrun: {epochs: 9}\nmodel: *m\n", r"run.yaml: model: given twice, in lines 1 and 3$"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_field(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(["--config", str(file)])


def test_a_field_may_stand_in_two_sections_and_beside_the_mapping_it_is_merged_from(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {<<: {tau: 0.7, align: mse}, tau: 0.6}\ndex: {lambda_align: 0.5}\n")
    model = read_yaml(file, PRESETS["laptop"]).model
    assert (model.tau, model.align) == (0.6, "mse")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read"):
        parse(["--config", str(tmp_path / "none.yaml")])


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("optimizer: {base_lr: 1e-4, warmup_epochs: 2}\n")
    config = parse(["--config", str(file)])
    assert (config.optimizer.base_lr, config.optimizer.warmup_epochs) == (1e-4, 2.0)


def test_a_resume_starts_from_what_the_run_folder_holds(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("model: {tau: 0.9}\n")
    assert parse(["--resume", "--out", str(out)]).model.tau == 0.9
    assert parse(["--resume", "--out", str(out), "--model.tau", "0.8"]).model.tau == 0.8
    assert parse(["--resume", "--out", str(out), "--preset", "laptop"]).model.tau == 0.5


def test_a_file_at_a_resume_changes_what_the_run_folder_holds(tmp_path):
    out, file = tmp_path / "run", tmp_path / "changes.yaml"
    out.mkdir()
    (out / "config.yaml").write_text("model: {tau: 0.9, align: mse}\noptimizer: {warmup_epochs: 1}\n")
    file.write_text("model: {tau: 0.7}\nrun: {epochs: 2}\n")  # two epochs do not fit the preset's warm-up
    config = parse(["--resume", "--out", str(out), "--config", str(file)])
    assert (config.model.tau, config.model.align, config.run.epochs) == (0.7, "mse", 2.0)
    file.write_text(f"out: {out}\nmodel: {{tau: 0.7}}\n")
    config = parse(["--resume", "--config", str(file)])
    assert (config.out, config.model.tau, config.model.align) == (str(out), 0.7, "mse")
    assert parse(["--config", str(file)]).model.align == "kd"
