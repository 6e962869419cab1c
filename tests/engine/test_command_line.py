"""The frame of commands that train, as both of them have it."""

import pytest

from dexcore.cli import main
from dexcore.engine.command_line import EXIT_ERROR, early_flags, run_command

COMMANDS = {"pretrain": ["pretrain"], "finetune": ["finetune", "task.yaml", "model"]}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_wrong_configuration_is_told_by_the_main_process_alone(line, rank, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))
    assert main([*line, "--config", "none.yaml"]) == EXIT_ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: none.yaml: cannot be read as a YAML file: ") if rank == 0 else told.err == ""
    assert told.err.count("\n") == (rank == 0)


@pytest.mark.parametrize("line", COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_flag_is_explained_with_the_commands_name(line, capsys):
    with pytest.raises(SystemExit) as left:
        main([*line, "--preset", "none"])
    assert left.value.code == EXIT_ERROR
    told = capsys.readouterr().err
    assert "invalid choice 'none' for argument '--preset'" in told
    assert f"dexcore {line[0]} --help" in told


def test_flags_that_are_known_early_have_their_defaults_where_one_is_wrong():
    more = {"--out": {"default": ""}}
    known = early_flags(["--preset", "b", "--steps", "3", "--out", "there"], ("a", "b"), more)
    assert (known.preset, known.config, known.out) == ("b", None, "there")
    known = early_flags(["--out", "there", "--preset", "c"], ("a", "b"), more)
    assert (known.preset, known.config, known.out) == (None, None, "")


def test_an_error_that_no_command_foresees_is_raised_and_a_lack_of_memory_told(capsys):
    def ends_with(error):
        def run(config, rank):
            raise error

        return run_command(lambda: "config", run, (KeyError,), "take less")

    with pytest.raises(RuntimeError, match="a bug"):
        ends_with(RuntimeError("a bug"))
    with pytest.raises(LookupError):
        ends_with(IndexError())
    assert ends_with(KeyError("a")) == EXIT_ERROR
    assert capsys.readouterr().err == "error: 'a'\n"
    assert ends_with(RuntimeError("can't allocate memory: of\nmany lines")) == EXIT_ERROR
    assert capsys.readouterr().err == "error: not enough memory (can't allocate memory: of); take less\n"
