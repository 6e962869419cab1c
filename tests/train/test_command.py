"""The command's border: every error a user can make or meet is a line on stderr."""

import resource
from pathlib import Path

import pytest
from runs import tiny

from dexcore.data.readers import UnreadableFileError
from dexcore.train import sample_store
from dexcore.train.arguments import to_yaml
from dexcore.train.command import EXIT_ERROR, main


@pytest.fixture
def flags(store, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(tiny(store, tmp_path / "run")))
    return ["--config", str(file)]


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--run.device", "abacus"], "error: run.device: "),
        (["--run.epochs", "inf"], "error: run.epochs: expected a finite number, got inf"),
        (["--optimizer.base-lr", "inf"], "error: optimizer.base_lr: expected a finite number, got inf"),
        (["--data.store", "nowhere"], "error: nowhere"),
    ],
)
def test_a_wrong_value_is_told_in_a_line(flags, wrong, message, capsys):
    assert main([*flags, *wrong]) == EXIT_ERROR
    assert _error(capsys).startswith(message)


def test_a_model_that_does_not_fit_into_memory_is_told_in_a_line(flags, capsys, little_memory):
    assert main([*flags, "--model.dim", "65536"]) == EXIT_ERROR
    message = _error(capsys)
    assert message.startswith("error: not enough memory (")
    assert "--data.accumulate" in message


@pytest.fixture
def little_memory():
    """Two GiB beyond what this process has taken: more is refused, as on a machine without it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_value_out_of_a_section_s_range_is_told_by_name(flags, capsys):
    with pytest.raises(SystemExit) as left:
        main([*flags, "--model.decoder-depth", "0"])
    assert left.value.code == EXIT_ERROR
    assert "model.decoder_depth: expected at least 1" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_told_in_a_line(flags, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    assert main([*flags, "--data.store", ""]) == EXIT_ERROR
    assert "/proc/cache" in _error(capsys)


def test_a_sample_file_that_cannot_be_read_is_told_in_a_line(flags, tmp_path, monkeypatch, capsys):
    def build(folder: object) -> None:
        raise UnreadableFileError(tmp_path / "CT.dcm", "the file is empty")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sample_store, "build_samples", build)
    assert main([*flags, "--data.store", ""]) == EXIT_ERROR
    assert "CT.dcm" in _error(capsys)
