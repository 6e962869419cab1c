"""What the page of measured claims says is what the kept numbers say."""

import json
import tarfile
from pathlib import Path

import pytest

from dexcore.evaluate.claims import Measured, findings
from dexcore.evaluate.claims.effects import measured
from dexcore.evaluate.claims.known import CLAIMS
from dexcore.report.claims import Shown

DOCS = Path(__file__).parents[2] / "docs"
EXPERIMENTS = ("synthetic", "real")


def told(name: str) -> dict:
    return json.loads((DOCS / "claims" / name / "claims.json").read_text(encoding="utf-8"))


def of_page(finding: dict) -> str:
    """A finding as the page's tables have it."""
    effect = finding["effect"]
    if effect is None:
        return "not measured"
    low, high = effect["interval"]
    return f"{effect['value']:+.3f} [{low:+.3f}, {high:+.3f}], {finding['verdict']}"


def numbers_of(runs: Path) -> dict:
    """The kept numbers of all runs of a folder but the pilots, by arm and seed."""
    found = {}
    for folder in sorted(runs.iterdir()):
        arm, seed, _ = folder.name.rsplit("-", 2)
        if not arm.startswith("pilot-"):
            parts = [Measured.load(path) for path in sorted(folder.glob("numbers-*.npz"))]
            found[arm, int(seed)] = {key: number for part in parts for key, number in part.numbers.items()}
    return found


def test_the_page_shows_every_verdict_and_interval():
    page = (DOCS / "claims_measured.md").read_text(encoding="utf-8").splitlines()
    for synthetic, real in zip(*(told(name)["findings"] for name in EXPERIMENTS), strict=True):
        claim = synthetic["claim"]
        line = f"| {claim['title']} | {claim['margin']:g} | {of_page(synthetic)} | {of_page(real)} |"
        assert line in page


def test_trained_controls_came_out_as_they_must():
    """Experts given by the true modality pass, experts given by chance fail: the instrument on trained models."""
    controls = {one["claim"]["name"]: one["controls"] for one in told("synthetic")["findings"]}
    for claim in ("routing", "specialization", "extraction"):
        assert [one["label"] for one in controls[claim]] == ["oracle-routing", "fixed-routing"]
        assert [one["verdict"] for one in controls[claim]] == ["supported", "refuted"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_verdicts_follow_from_the_kept_numbers(name, tmp_path):
    with tarfile.open(DOCS / "claims" / name / "numbers.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (runs,) = tmp_path.glob("*/runs")
    trained = numbers_of(runs)
    (written,) = tmp_path.glob("*/smallest_effects.json")
    before = json.loads(written.read_text(encoding="utf-8"))["claims"]
    nan = float("nan")
    shown = {
        key: Shown(*(nan if own[each] is None else own[each] for each in ("smallest", "power_at_margin")))
        for key, own in before.items()
    }
    found = [json.loads(json.dumps(one.as_json())) for one in findings(trained, CLAIMS, shown)]
    expected = told(name)["findings"]
    assert [of_page(one) for one in found] == [of_page(one) for one in expected]
    assert [[own["passed"] for own in one["controls"]] for one in found] == [
        [own["passed"] for own in one["controls"]] for one in expected
    ]
    assert [one["smallest"] for one in found] == [one["smallest"] for one in expected]


@pytest.mark.parametrize("probes", ["probes", "probes_once"])
@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_the_page_shows_every_number_of_the_probes(kind, probes):
    found = json.loads((DOCS / "claims" / "real" / f"{probes}_{kind}.json").read_text(encoding="utf-8"))
    page = (DOCS / "claims_measured.md").read_text(encoding="utf-8")
    several, once = page.split("### All tasks, one training each")
    lines = (several if probes == "probes" else once).splitlines()
    shown = [name for name in found["models"] if "director-random" not in name]  # the same as through the experts
    for row in found["tasks"]:
        (line,) = [one for one in lines if one.startswith(f"| {row['task']} | ")]
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        assert cells[1:3] == [row["metric"], str(row["cases"])]
        for name, cell in zip(shown, cells[3:], strict=True):
            one, against = row["numbers"][name], row["against"].get(name)
            assert cell.rstrip(" +-") == f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            low, high = (against["difference"][end] for end in ("low", "high")) if against else (0.0, 0.0)
            assert (cell[-2:] == " +", cell[-2:] == " -") == (low > 0, high < 0)


CHANGED = {
    "variance explained": "Variance explained on held-out images",
    "linear probe": "Linear probe",
    "routing": "Experts follow modalities",
    "specificity": "Experts are of use to their modality",
    "saved loss": "A modality's module can be cut out",
}


def test_the_page_shows_what_a_changed_dex_gained(tmp_path):
    with tarfile.open(DOCS / "claims" / "remedies" / "numbers.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    lines = (DOCS / "claims_measured.md").read_text(encoding="utf-8").splitlines()
    trained = [numbers_of(tmp_path / name / "runs") for name in ("real", "synthetic")]
    for numbers in trained:
        assert sorted(numbers) == [(arm, seed) for arm in ("dex", "dex-sooner") for seed in range(3)]
    for number, title in CHANGED.items():
        cells = []
        for numbers in trained:
            gain = measured(numbers, [(1.0, "dex-sooner", number), (-1.0, "dex", number)])
            assert gain is not None
            cells.append(f"{gain.value:+.3f} [{gain.interval[0]:+.3f}, {gain.interval[1]:+.3f}]")
        assert f"| {title} | {' | '.join(cells)} |" in lines
