"""No text of a header gets any further, whatever the file: planted in every field that DICOM has room for."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from made_files import write_dicom
from made_folders import noise
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.uid import JPEG2000Lossless

from dexcore.cli import main
from dexcore.data.assemble.build import build
from dexcore.data.assemble.options import Options
from dexcore.report.store_page import report_store

SECRET = "PLANTED"
# Text of each kind, as long as it may be. Numbers cannot hold a word; a broken writer's can.
_TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_NUMBERS = ("AS", "DA", "DS", "DT", "IS", "TM", "UI")
# These make the file what it is.
_KEPT = {"SpecificCharacterSet", "PhotometricInterpretation", "SOPClassUID", "TransferSyntaxUID", "Modality"}


def planted(path: Path, vrs: tuple[str, ...], number: int, **attributes: object) -> Path:
    """A DICOM file with the secret in every element of the kinds, and in private ones."""
    write_dicom(path, noise((70, 70), number, 4000), **{"Modality": "MR"} | attributes)
    dataset = pydicom.dcmread(path)
    kept = _KEPT | attributes.keys()
    value = SECRET.encode().ljust(8)
    for number_of_tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        group = number_of_tag >> 16
        repeating = 0x5000 <= group <= 0x60FF
        if vr in vrs and group > 2 and not (retired or repeating) and keyword and keyword not in kept:
            tag = pydicom.tag.Tag(number_of_tag)
            dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    block = dataset.private_block(0x0011, SECRET, create=True)
    block.add_new(0x01, "LO", SECRET)
    dataset.save_as(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "scans"
    root.mkdir()
    planted(root / "texts.dcm", _TEXTS, 0)
    planted(root / "texts_ct.dcm", _TEXTS, 1, Modality="CT")
    planted(root / "texts_pet.dcm", _TEXTS, 2, Modality="PT")
    planted(root / "texts_us.dcm", _TEXTS, 3, Modality="US")
    planted(root / "texts_unknown.dcm", _TEXTS, 4, Modality=SECRET)
    planted(root / "texts_photometric.dcm", _TEXTS, 5, PhotometricInterpretation=SECRET)
    planted(root / "numbers.dcm", _NUMBERS, 6)
    planted(root / "all.dcm", _TEXTS + _NUMBERS, 7)
    for number, size in enumerate((600, 3000, 8000, -100)):
        (root / f"cut{number}.dcm").write_bytes((root / "all.dcm").read_bytes()[:size])
    broken = pydicom.dcmread(planted(root / "compressed.dcm", _TEXTS, 8))
    broken.file_meta.TransferSyntaxUID = JPEG2000Lossless
    broken.PixelData = pydicom.encaps.encapsulate([SECRET.encode() * 20])
    broken["PixelData"].is_undefined_length = True
    broken.save_as(root / "compressed.dcm")
    return root


def test_the_fixture_holds_what_it_must(folder):
    dataset = pydicom.dcmread(folder / "texts.dcm")
    assert dataset.PatientName == dataset.PatientID == dataset.StudyDescription == SECRET
    assert sum(element.value == SECRET for element in dataset) > 300


def refuse_secrets(store: Path) -> None:
    written = {path.name: path.read_bytes() for path in store.rglob("*")}
    assert [name for name, content in written.items() if SECRET.encode() in content] == []
    assert {"report.html", "examples.jsonl", "rejects.jsonl", "build.json"} < written.keys()


def test_nothing_of_headers_is_written_or_told(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with ThreadPoolExecutor(1) as executor:
        report = build(folder, tmp_path / "store", Options(modality="MR"), executor=executor)
    assert report.manifest.images >= 3  # some are read, so that there is something to leak
    print("\n".join(report.lines()), report_store(tmp_path / "store"))
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err
    refuse_secrets(tmp_path / "store")
    assert (tmp_path / "store" / "rejects.jsonl").stat().st_size > 0


def test_nothing_of_headers_is_told_by_the_command(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert main(["mvu", "build", str(folder), "--out", str(tmp_path / "store"), "--jobs", "1"]) == 0
    assert main(["mvu", "build", str(folder), "--dry-run", "--jobs", "1"]) == 0
    assert main(["mvu", "stats", str(tmp_path / "store")]) == 0
    told = capfd.readouterr()
    assert SECRET not in told.out + told.err
    refuse_secrets(tmp_path / "store")
