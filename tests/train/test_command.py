"""The command's border: every error a user can make or meet is a line on stderr."""

import resource
import shutil
from pathlib import Path

import pytest
from runs import tiny, write_images

from dexcore.engine.command_line import EXIT_ERROR
from dexcore.engine.config_file import to_yaml
from dexcore.train import image_store
from dexcore.train.command import main


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


def test_a_step_that_does_not_fit_into_memory_is_told_with_rank_and_step(flags, capsys, little_memory):
    many = ["--data.batch-size", "2000", "--data.epoch-size", "20000", "--model.mlp-ratio", "2000"]
    assert main([*flags, *many]) == EXIT_ERROR
    message = _error(capsys)
    assert message.startswith("error: rank 0 has no memory left on cpu in step 0: ")
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
    def link(folder: Path) -> None:  # of all packages one has a file, which is damaged
        (folder / "scikit-image" / "data").mkdir(parents=True)
        (folder / "scikit-image" / "data" / "ihc.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(image_store, "link_packages", link)
    assert main([*flags, "--data.store", ""]) == EXIT_ERROR
    assert "scikit-image/data/ihc.png" in _error(capsys)


REFUSED = {
    "a device that is not here": ["--run.device", "abacus"],
    "a store that is missing": ["--data.store", "nowhere"],
    "a store that is a file": ["--data.store", "notes.txt"],
    "a store that is empty": ["--data.store", "empty"],
    "a store without a training image": ["--data.store", "heldout"],
    "a store that lost a shard": ["--data.store", "lost"],
    "a store without a whole image": ["--data.store", "spoilt"],
    "an image that cannot be read": ["--data.store", "spoilt", "--data.max-replaced", "0"],
    "a model that does not fit into memory": ["--model.dim", "65536"],
    "a step that does not fit into memory": ["--model.mlp-ratio", "65000", "--run.precision", "fp32"],
    "a resumption of nothing": ["--resume", "--data.store", "nowhere"],
}


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Faulty stores in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("mine")
    write_images(Path("heldout"), images=4, one_heldout_in=1)
    for folder in (Path("lost"), Path("spoilt")):
        write_images(folder)
        (shard,) = folder.glob("*.arrow")
        if folder.name == "lost":
            shard.unlink()
        else:
            shard.write_bytes(shard.read_bytes().replace(b"\x28\xb5\x2f\xfd", bytes(4)))  # Zstandard's magic number


@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.usefixtures("stores", "little_memory")
def test_a_run_that_is_refused_leaves_no_folder_and_no_file(flags, wrong, there, tmp_path, capsys):
    if there:
        (tmp_path / "runs" / "here").mkdir(parents=True)
    before = _content(tmp_path)
    assert main([*flags, "--out", str(tmp_path / "runs" / "here"), *wrong]) == EXIT_ERROR
    assert _error(capsys)
    assert _content(tmp_path) == before


RESUMPTIONS = {
    "other images": ["--data.store", "other"],
    "no images": ["--data.store", "nowhere"],
    "another configuration": ["--model.tau", "0.7"],
    "another device": ["--run.device", "abacus"],
}


@pytest.mark.parametrize("wrong", RESUMPTIONS.values(), ids=RESUMPTIONS)
def test_a_resumption_that_is_refused_changes_nothing(whole_run, wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(Path("other"), seed=1)
    shutil.copytree(whole_run.out, "run")
    before = _content(tmp_path)
    assert main(["--resume", "--out", "run", "--data.workers", "1", *wrong]) == EXIT_ERROR
    assert _error(capsys)
    assert _content(tmp_path) == before


def _content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
