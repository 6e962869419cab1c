"""Real files: the corpus, and the test files of pydicom and nibabel, through ``build``; minutes long."""

import json
from collections import Counter
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from corpus import CORPUS, needs_corpus
from made_files import PYDICOM, PYDICOM_DATA, package_folder

from dexcore.data import Modality, build_store, open_mvu
from dexcore.data.store import check_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The corpus's ten folders, each with a dataset.yaml of one line, and their store."""
    base = tmp_path_factory.mktemp("corpus")
    for modality in Modality:
        (base / "scans" / modality).mkdir(parents=True)
        for folder in (CORPUS / modality).iterdir():
            (base / "scans" / modality / folder.name).symlink_to(folder)
        (base / "scans" / modality / "dataset.yaml").write_text(f"modality: {modality}\n")
    (base / "key").write_text("0123456789abcdef")
    build_store(base / "scans", base / "store", key=base / "key")
    return base


def reports(store: Path) -> dict:
    return json.loads((store / "build.json").read_text())["sources"]


def rejected(store: Path) -> Counter:
    return Counter(
        json.loads(line)["path"].split("#")[0] for line in (store / "rejects.jsonl").read_text().splitlines()
    )


@needs_corpus
def test_every_file_of_the_corpus_is_accounted_for(built):
    kept, ignored, files = Counter(), Counter(), 0
    for report in reports(built / "store").values():
        kept.update(report["kept"])
        ignored.update(report["ignored"])
        files += report["files"]
    assert files == sum(len(list((CORPUS / modality).rglob("*.*"))) for modality in Modality) + 5  # LICENSE
    assert ignored == {".json": 176, ".xml": 120, "license": 5, ".txt": 1}
    assert kept == {
        "CT/dicom": 124,
        "CT/nifti": 47,
        "PET/dicom": 128,
        "MR/dicom": 100,
        "MR/nifti": 241,
        "MR/nrrd": 48,
        "X-ray/dicom": 2,
        "X-ray/jpeg": 126,
        "Ultrasound/dicom": 3,
        "Ultrasound/png": 165,
        "Fundus/jpeg": 31,
        "Fundus/png": 2,
        "OCT/heidelberg": 2,
        "OCT/jpeg": 4,
        "OCT/png": 18,
        "Pathology/jpeg": 121,
        "Pathology/png": 60,
        "Pathology/slide": 11,
        "Endoscopy/jpeg": 265,
        "Photo/jpeg": 178,
        "Photo/png": 32,
    }
    assert check_store(built / "store") == []


@needs_corpus
def test_no_mask_of_the_corpus_is_an_image(built):
    """labels/*.csv names the masks: none is kept, and every image is kept or has its reason."""
    dataset = open_mvu(built / "store")
    kept = {dataset[index]["path"].split("#")[0] for index in range(len(dataset))}
    for table in (CORPUS / "labels").glob("*.csv"):
        for line in table.read_text().splitlines()[1:]:
            mask = line.rsplit(",", 1)[1]
            assert mask not in kept


@needs_corpus
def test_images_are_as_independent_readers_see_them(built):
    dataset = open_mvu(built / "store")
    compared = Counter()
    for index in range(len(dataset)):
        row = dataset[index]
        file, _, place = row["path"].partition("#")
        path = built / "scans" / file
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            expected = picture(path)
        elif path.name.endswith(".nii.gz") and place.startswith("axial="):
            expected = nifti_slice(path, int(place.removeprefix("axial=")), row["normalization"])
        elif path.suffix == ".dcm" and row["modality"] == "CT" and place == "":
            hu = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))[0]
            expected = (hu.clip(-200, 400) + 200) / 600
            dicom = pydicom.dcmread(path, stop_before_pixels=True)
            if "PixelPaddingValue" in dicom:  # becomes the darkest that is none
                padding = dicom.PixelPaddingValue * float(dicom.RescaleSlope) + float(dicom.RescaleIntercept)
                expected[hu == padding] = 0
        else:
            continue
        image = row["image"]
        if image.shape != expected.shape:
            expected = cv2.resize(expected, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        error = np.abs(image - expected)
        assert error.mean() < 0.003, row["path"]
        assert np.quantile(error, 0.99) < 0.03, row["path"]  # decoders of JPEG round in their own ways
        compared[row["modality"]] += 1
    assert sum(compared.values()) > 1200
    assert set(compared) >= set(Modality) - {Modality.PET}


def picture(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    scale = np.iinfo(pixels.dtype).max
    if pixels.ndim == 3:
        if pixels.shape[2] == 4:  # over black
            pixels = pixels[..., :3] * (pixels[..., 3:] / np.float32(scale))
        pixels = pixels[..., ::-1]
        if (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
    return np.ascontiguousarray(pixels, dtype=np.float32) / scale


def nifti_slice(path: Path, index: int, method: str) -> np.ndarray:
    volume = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    if method == "hu_window":
        low, high = -200, 400
    else:
        low, high = np.percentile(volume, (1, 99))
    plane = ((volume[..., index].clip(low, high) - low) / (high - low)).astype(np.float32)
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def test_the_files_of_other_libraries_tests_are_accounted_for(tmp_path):
    nibabel_folder = package_folder("nibabel")
    folders = [PYDICOM, PYDICOM_DATA, nibabel_folder / "tests" / "data", nibabel_folder / "nicom" / "tests" / "data"]
    for number, folder in enumerate(folders):
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "scans" / str(number)).symlink_to(folder)
    (tmp_path / "key").write_text("0123456789abcdef")
    manifest = build_store(tmp_path / "scans", tmp_path / "store", modality="MR", key=tmp_path / "key", min_side=16)
    [report] = reports(tmp_path / "store").values()
    found = {
        path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    }
    assert report["files"] == len(found)
    kept = open_mvu(tmp_path / "store")
    told = {kept[index]["path"].split("#")[0] for index in range(len(kept))} | set(rejected(tmp_path / "store"))
    assert manifest.images > 100
    # The slices of a volume stand under the name of the first; all others under their own.
    assert len(told) + sum(report["ignored"].values()) > 0.8 * len(found)
