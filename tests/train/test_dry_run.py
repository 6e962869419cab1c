"""A dry run: what it tells, and that it leaves nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from runs import ends, flags, start_ranks, tiny

from dexcore.engine.config_file import to_yaml
from dexcore.train.command import main
from dexcore.train.dry_run import _estimate


def _everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dry_run_tells_memory_speed_and_time_and_writes_nothing(store, tmp_path, monkeypatch, capsys, workers):
    config = tiny(store, tmp_path / "run", epochs=1000, precision="fp32")
    config = replace(config, data=replace(config.data, workers=workers, accumulate=2))
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    before = _everything(tmp_path), _everything(store)
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "run.yaml", "--dry-run"]) == 0
    assert (_everything(tmp_path), _everything(store)) == before
    assert not (tmp_path / "run").exists()
    told, meanwhile = capsys.readouterr()
    estimates = re.findall(r"step (\d+) of 10: .* so far ([\d.e+-]+) to ([\d.e+-]+) s a step, .* to finish", meanwhile)
    assert [int(number) for number, _, _ in estimates] == list(range(1, 11))
    assert all(float(low) <= float(high) for _, low, high in estimates)
    assert "cpu, fp32" in told
    assert "20 for training; 1000 epochs of 20 are 2,500 steps" in told
    assert "8 = 1 processes x 2 parts x 4 images" in told
    memory = re.search(r"memory +([\d,]+) MiB", told)
    assert memory
    assert 100 < int(memory[1].replace(",", "")) < 20_000
    step, prepare, rate = (
        float(n) for n in re.search(r"([\d.]+) s a step, ([\d.]+) s .*: (\d+) images/s", told).groups()
    )
    assert step > 0
    assert rate == pytest.approx(8 / (max(prepare / workers, step) if workers else prepare + step), rel=0.2)
    assert re.search(r"to finish  \d+ (s|min)", told)


def test_a_dry_run_into_a_run_s_folder_leaves_it_alone(whole_run, capsys, tmp_path):
    before = _everything(Path(whole_run.out))
    (tmp_path / "run.yaml").write_text(to_yaml(replace(whole_run, dry_run=True)))
    assert main(["--config", str(tmp_path / "run.yaml")]) == 0
    assert "dry run: no run folder was written" in capsys.readouterr().out
    assert _everything(Path(whole_run.out)) == before


def test_the_estimate_after_the_first_step_has_a_spread_that_narrows():
    """Steps as they are: the first is slow, the others are nearly alike."""
    times = [(0.0, seconds) for seconds in (2.0, 1.3, 1.1, 1.02, 1.0, 0.99, 1.01, 1.0, 1.0, 1.0)]
    spreads = []
    for done in range(1, 11):
        words = _estimate(times[:done], 10, workers=0, total_steps=60)
        low, high = map(float, re.search(r"so far ([\d.]+) to ([\d.]+) s a step", words).groups())
        assert low <= 1.0 + 0.15
        assert high >= 1.0
        spreads.append(high / low)
    assert spreads[0] > 3 > 1.5 > spreads[2] > 1.05 > spreads[9]
    assert "40 s to 2 min" in _estimate(times[:1], 10, workers=0, total_steps=60)


@pytest.mark.slow
def test_ranks_rehearse_together_and_one_of_them_tells(store, tmp_path):
    from runs import EXAMPLE

    config = replace(tiny(store, tmp_path / "run"), dry_run=True)
    codes, printed, said = ends(start_ranks(2, [str(EXAMPLE), *flags(config, tmp_path)]))
    assert codes == [0, 0], said
    assert "8 = 2 processes x 1 parts x 4 images" in printed[0]
    assert printed[1] == ""
    assert not (tmp_path / "run").exists()
