"""A small tree of each source of MVU, as its download unpacks, in the true formats and with its traps.

Each function makes one below a folder, and says which files are images, and of which patient. The recipes are not
looked at here: this is what they are measured by.
"""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import numpy as np
from made_files import write_dicom
from made_kinds import write_video
from PIL import Image
from pydicom.uid import generate_uid

SIDE = 72  # px, above the smallest side that a build keeps
SLICES = 3  # of a volume
FRAMES = 31  # of a video: one in 30 is two
STACK = 41  # frames of the HDF5 file


class Tree:
    """Files below a folder.

    Attributes:
        taken: the images, by their paths below the folder; and whose they are.
        images: how many 2-D images the taken files hold.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.root = root
        self.taken: dict[str, str] = {}
        self.images = 0
        self._rng = np.random.default_rng(zlib.crc32(name.encode()))

    def image(self, path: str, patient: str, **how: object) -> None:
        """An image that must be taken."""
        self.taken[path] = patient
        self.images += self._write(path, **how)

    def trap(self, *paths: str, **how: object) -> None:
        """Files that look like images, and must be left."""
        for path in paths:
            self._write(path, **how)

    def text(self, path: str, text: str | bytes = "") -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())

    def pixels(self, *shape: int) -> np.ndarray:
        """uint8, of blots in noise: no two alike, bright enough to be kept."""
        blots = self._rng.integers(60, 200, (*shape[:-2], shape[-2] // 8, shape[-1] // 8))
        noise = self._rng.integers(-20, 20, shape)
        return (np.kron(blots, np.ones((8, 8), int)) + noise).astype(np.uint8)

    def _write(self, path: str, **how: object) -> int:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        ending = target.name.rpartition(".")[2].lower()
        return self._WRITERS[ending](self, target, **how)

    def _nifti(self, target: Path, unit: str = "", times: int = 1) -> int:
        values = self.pixels(SLICES, SIDE, SIDE).T.astype(np.float32)
        if unit == "HU":
            values = (values * 10 - 1200).astype(np.int16)
        if unit == "SUV":
            values /= 20
        if times > 1:
            values = np.repeat(values[..., None], times, axis=-1)
        volume = nibabel.Nifti1Image(values, np.diag([1.5, 1.5, 5, 1]))
        nibabel.save(volume, target)
        return SLICES

    def _numpy(self, target: Path) -> int:
        np.save(target, self.pixels(SLICES, SIDE, SIDE))
        return SLICES

    def _dicom(self, target: Path, modality: str = "MR", **attributes: object) -> int:
        pixels = self.pixels(SIDE, SIDE).astype(np.uint16) * 16
        write_dicom(target, pixels, Modality=modality, **attributes)
        return 1

    def _picture(self, target: Path, mode: str = "L") -> int:
        planes = [Image.fromarray(self.pixels(SIDE, SIDE)) for _ in range(len(mode) if mode != "L" else 1)]
        image = Image.merge(mode, planes) if len(planes) > 1 else planes[0]
        formats = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "png": "PNG", "bmp": "BMP"}
        image.save(target, formats[target.suffix[1:].lower()])
        return 1

    def _video(self, target: Path) -> int:
        frames = np.stack([self.pixels(SIDE, SIDE)] * 3, axis=-1)
        codec, form = ("mjpeg", "yuvj420p") if target.suffix == ".avi" else ("mpeg4", "yuv420p")
        moving = np.stack([np.roll(frames, index, axis=0) for index in range(FRAMES)])
        write_video(target, moving, codec, form)
        return -(-FRAMES // 30)

    _WRITERS: dict[str, Callable[..., int]] = {  # noqa: RUF012
        "gz": _nifti, "npy": _numpy, "dcm": _dicom, "avi": _video, "mp4": _video,
        **dict.fromkeys(("png", "jpg", "jpeg", "bmp", "tif"), _picture),
    }  # fmt: skip


def _autopet(tree: Tree, wanted: str) -> None:
    studies = {
        "PETCT_0011f3deaf/03-23-2003-NA-PET-CT Ganzkoerper  primaer mit KM-10445": "PETCT_0011f3deaf",
        "PETCT_0011f3deaf/06-12-2004-NA-PET-CT Ganzkoerper nativ u. mit KM-95034": "PETCT_0011f3deaf",
        "PETCT_01140d52d8/08-27-2005-NA-PET-CT Ganzkoerper  primaer mit KM-56839": "PETCT_01140d52d8",
    }
    units = {"CT": "HU", "CTres": "HU", "PET": "", "SUV": "SUV"}
    for study, patient in studies.items():
        for name, unit in units.items():
            path = f"FDG-PET-CT-Lesions/{study}/{name}.nii.gz"
            if name == wanted:
                tree.image(path, patient, unit=unit)
            else:
                tree.trap(path, unit=unit)
        tree.trap(f"FDG-PET-CT-Lesions/{study}/SEG.nii.gz")
    tree.text("FDG-PET-CT-Lesions/Clinical Metadata FDG PET_CT Lesions.csv", "Series UID\n")


def autopet_ct(tree: Tree) -> None:
    _autopet(tree, "CT")


def autopet_pet(tree: Tree) -> None:
    _autopet(tree, "PET")


def autopet_suv(tree: Tree) -> None:
    _autopet(tree, "SUV")


def imagecas(tree: Tree) -> None:
    for path in ("1-200/1", "1-200/12", "201-400/201", "801-1000/1000"):
        tree.image(f"{path}.img.nii.gz", path.rpartition("/")[2], unit="HU")
        tree.trap(f"{path}.label.nii.gz")
    tree.text("401-600.change2zip", b"PK\x05\x06" + bytes(18))
    tree.text("401-600.z01", b"PK\x07\x08" + bytes(64))
    tree.text("imageCAS_data_split.xlsx", b"PK\x03\x04")
    tree.text("Coronary_Segmentation_deep_learning/split_1000.csv", "FileName\n")


def _topbrain(tree: Tree, wanted: str) -> None:
    release = "TopBrain_Data_Release_Batches1n2_081425/TopBrain_Data_Release_Batches1n2_081425"
    merged = "TopBrain_Data_Release_Batches1n2nTA36_081726"
    for kind in ("ct", "mr"):
        units = {"unit": "HU"} if kind == "ct" else {}
        for number in ("001", "027"):
            image = f"{release}/imagesTr_topbrain_{kind}/topcow_{kind}_{number}_0000.nii.gz"
            if kind == wanted:
                tree.image(image, number, **units)
            else:
                tree.trap(image, **units)
            tree.trap(f"{release}/labelsTr_topbrain_{kind}/topcow_{kind}_{number}.nii.gz")
        image = f"{merged}/imagesTr_topbrain/topcow_{kind}_036_0000.nii.gz"
        if kind == wanted:
            tree.image(image, "036", **units)
        else:
            tree.trap(image, **units)
        tree.trap(f"{merged}/labelsTr_topbrain/topcow_{kind}_036.nii.gz")
    tree.text(f"{merged}/labelmap_jsons/labelmap.json", "{}")


def topbrain_ct(tree: Tree) -> None:
    _topbrain(tree, "ct")


def topbrain_mr(tree: Tree) -> None:
    _topbrain(tree, "mr")


def totalsegmentator_mr(tree: Tree) -> None:
    for case in ("s0001", "s0616"):
        tree.image(f"TotalsegmentatorMRI_dataset_v200/{case}/mri.nii.gz", case)
        for organ in ("spleen", "liver"):
            tree.trap(f"TotalsegmentatorMRI_dataset_v200/{case}/segmentations/{organ}.nii.gz")
    tree.text("TotalsegmentatorMRI_dataset_v200/meta.csv", "image_id;split\ns0001;train\n")


def acdc(tree: Tree) -> None:
    for patient, frames in {"patient001": ("01", "12"), "patient090": ("04", "11")}.items():
        folder = f"ACDC/database/training/{patient}"
        for frame in frames:
            tree.image(f"{folder}/{patient}_frame{frame}.nii.gz", patient)
            tree.trap(f"{folder}/{patient}_frame{frame}_gt.nii.gz")
        tree.trap(f"{folder}/{patient}_4d.nii.gz", times=2)
        tree.text(f"{folder}/Info.cfg", f"ED: {int(frames[0])}\nES: {int(frames[1])}\n")
        tree.text(f"{folder}/MANDATORY_CITATION.md")
    tree.trap("ACDC/database/testing/patient101/patient101_frame01.nii.gz")


def mrnet(tree: Tree) -> None:
    for part, exams in {"train": ("0000", "0001"), "valid": ("1130",)}.items():
        for exam in exams:
            for plane in ("axial", "coronal", "sagittal"):
                tree.image(f"MRNet-v1.0/{part}/{plane}/{exam}.npy", exam)
    tree.text("MRNet-v1.0/train-acl.csv", "0000,0\n0001,1\n")


def duke_breast_cancer_mri(tree: Tree) -> None:
    root = "manifest-1607053360376/Duke-Breast-Cancer-MRI"
    for patient, series in {
        "Breast_MRI_001": "01-01-1990-NA-MRI BREAST BILATERAL W WO-97538/26.000000-ax t1 tse c-58582",
        "Breast_MRI_002": f"{generate_uid()}/{generate_uid()}",  # the "Classic" names
    }.items():
        study, uid = generate_uid(), generate_uid()
        for number in (1, 2, 3):
            tree.image(
                f"{root}/{patient}/{series}/1-{number:02d}.dcm",
                patient,
                PatientID=patient,
                StudyInstanceUID=study,
                SeriesInstanceUID=uid,
                InstanceNumber=4 - number,
                ImagePositionPatient=[0, 0, 5 * number],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                PixelSpacing=[1, 1],
            )
    tree.trap(
        f"{root}/Breast_MRI_001/01-01-1990-NA-MRI BREAST BILATERAL W WO-97538/300.000000-Segmentation-1/1-1.dcm",
        modality="SEG",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4",
    )
    tree.text("Clinical_and_Other_Features.xlsx", b"PK\x03\x04")


def prostate_mri_us_biopsy(tree: Tree) -> None:
    root = "manifest-1694710246744/Prostate-MRI-US-Biopsy"
    for patient in ("Prostate-MRI-US-Biopsy-0001", "Prostate-MRI-US-Biopsy-1151"):
        for study in ("07-06-2007-NA-MRI PROSTATE-1", "09-08-2009-NA-MRI PROSTATE-2"):
            path = f"{root}/{patient}/{study}/3.000000-t2spcrstaxial obl-10.dcm/1-01.dcm"
            tree.image(path, patient, PatientID=patient, SeriesInstanceUID=generate_uid())
        us = f"{root}/{patient}/07-06-2007-NA-MRI PROSTATE-1/1.000000-us-1/1-1.dcm"
        tree.trap(us, modality="US", PatientID=patient)
    tree.text("STLs/Prostate-MRI-US-Biopsy-0001-ProstateSurface-seriesUID-1.2.3.STL", b"solid")
    tree.text("TCIA-Biopsy-Data_2020-07-14.xlsx", b"PK\x03\x04")


def brats_gli(tree: Tree) -> None:
    old = "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData"
    new = "BraTS2024-BraTS-GLI-TrainingData/training_data1_v2"
    for folder, visit, patient in (
        (old, "BraTS-GLI-00005-000", "2023, 00005"),
        (old, "BraTS-GLI-00005-001", "2023, 00005"),
        (old, "BraTS-GLI-00012-000", "2023, 00012"),
        (new, "BraTS-GLI-00005-100", "2024, 00005"),  # another patient than 2023's
    ):
        for contrast in ("t1c", "t1n", "t2f", "t2w"):
            tree.image(f"{folder}/{visit}/{visit}-{contrast}.nii.gz", patient)
        tree.trap(f"{folder}/{visit}/{visit}-seg.nii.gz")


def lldmmr(tree: Tree) -> None:
    for patient in ("MR-391135", "MR-402"):
        for series, number in (("123456", "1"), ("123457", "2")):
            tree.image(f"images/{patient}/{series}/{number}.nii.gz", patient)
        for phase in ("T2WI", "In Phase", "C+Delay"):
            tree.trap(f"classification_dataset/images/{patient}/{phase}.nii.gz")
    tree.text("labels/Annotation.json", "{}")
    tree.text("classification_dataset/labels/labels.txt", "MR-402 -1\n")


def chestx_ray8(tree: Tree) -> None:
    tree.image("images_001/images/00000001_000.png", "00000001")
    tree.image("images_001/images/00000001_001.png", "00000001", mode="RGBA")
    tree.image("images_012/images/00030805_000.png", "00030805")
    tree.text("Data_Entry_2017.csv", "Image Index,Patient ID\n00000001_000.png,1\n")
    tree.text("BBox_List_2017.csv", "Image Index\n")
    tree.text("train_val_list.txt", "00000001_000.png\n")


def chexpert(tree: Tree) -> None:
    first, second = "CheXpert-v1.0 batch 1 (validate & csv)", "CheXpert-v1.0 batch 2 (train 1)"
    tree.image(f"{second}/patient00001/study1/view1_frontal.jpg", "patient00001")
    tree.image(f"{second}/patient00001/study2/view1_frontal.jpg", "patient00001")
    tree.image(f"{second}/patient00002/study1/view2_lateral.jpg", "patient00002")
    tree.image("CheXpert-v1.0 batch 4 (train 3)/patient64540/study1/view1_frontal.jpg", "patient64540")
    tree.image(f"{first}/valid/patient64541/study1/view1_frontal.jpg", "patient64541")
    tree.text(f"{first}/train.csv", "Path,Sex\nCheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,Female\n")
    tree.text(f"{first}/CHEXPERT DEMO.xlsx", b"PK\x03\x04")
    tree.trap("CheXpert-v1.0/test/patient64741/study1/view1_frontal.jpg")


def mammo_bench(tree: Tree) -> None:
    rows = [
        ("cmmd", "0017.jpg", "001"),  # the same number in another source is another patient
        ("cmmd", "0018.jpg", "001"),
        ("ddsm", "0017.jpg", "001"),
        ("dmid", "IMG001.jpg", "007"),
    ]
    table = "preprocessed_image_path,source_dataset,source_subject_id\n"
    for source, name, subject in rows:
        tree.image(f"Mammo_Bench_v2/Preprocessed_Dataset/{source}/{name}", f"{source}:{subject}")
        tree.trap(f"Mammo_Bench_v2/Original_Dataset/{source}/{name}", f"Mammo_Bench_v2/Masks/{source}/{name}")
        table += f"Preprocessed_Dataset/{source}/{name},{source},{subject}\n"
    tree.trap("Mammo_Bench_v2/Preprocessed_Dataset/dmid/IMG001_ROI.jpg")
    tree.trap("Mammo_Bench_v2/Preprocessed_Dataset/dmid/not listed.jpg")
    tree.text("Mammo_Bench_v2/CSV_Files/mammo-bench.csv", table)


def mura(tree: Tree) -> None:
    for path, patient in {
        "train/XR_SHOULDER/patient00001/study1_positive/image1.png": "patient00001",
        "train/XR_WRIST/patient00001/study1_negative/image1.png": "patient00001",
        "train/XR_WRIST/patient00002/study1_negative/image2.png": "patient00002",
        "valid/XR_ELBOW/patient11186/study1_positive/image1.png": "patient11186",
    }.items():
        tree.image(f"MURA-v1.1/{path}", patient, mode="RGB" if "ELBOW" in path else "L")
    tree.text("MURA-v1.1/train/XR_WRIST/patient00002/study1_negative/._image2.png", b"\0\5\x16\7")
    tree.text("MURA-v1.1/train_image_paths.csv", "MURA-v1.1/train/XR_WRIST/patient00001/study1_negative/image1.png\n")


def vzrad2(tree: Tree) -> None:
    for path, picture in {
        f"train/Doe-Jane-34Yrs-12042019_jpg.rf.{'0a' * 16}.jpg": "Doe-Jane",
        f"train/Doe-Jane-34Yrs-12042019_jpg.rf.{'1b' * 16}.jpg": "Doe-Jane",  # augmented
        f"valid/Doe-Jane-34Yrs-12042019_jpg.rf.{'2c' * 16}.jpg": "Doe-Jane",
        f"test/23_jpg.rf.{'3d' * 16}.jpg": "23",
    }.items():
        tree.image(path, picture, mode="RGB")
    tree.trap(f"train/23_jpg.rf.{'3d' * 16}_mask.png")
    tree.text("train/_annotations.coco.json", "{}")


def adsd(tree: Tree) -> None:
    for name, patient in {
        "14_002_5_0016.bmp": "14_002",
        "14_002_5_0017.bmp": "14_002",
        "14_002_7_0001.BMP": "14_002",
        "14_003_1_0002.bmp": "14_003",
        "15_002_1_0002.bmp": "15_002",
    }.items():
        tree.image(f"dataset/{name}", patient)
        tree.text(f"dataset/{name.rpartition('.')[0]}.xml", "<annotation/>")


def arcade(tree: Tree) -> None:
    for task, mode in (("syntax", "L"), ("stenosis", "RGB")):
        for part in ("train", "val", "test"):
            tree.image(f"arcade/{task}/{part}/images/1.png", f"{task}, {part}, 1", mode=mode)
            tree.text(f"arcade/{task}/{part}/annotations/{part}.json", "{}")


def xacd(tree: Tree) -> None:
    tree.image("XCAD/train/trainB/000_PPA_44_PSA_00_8.png", "000")
    tree.image("XCAD/train/trainB/000_PPA_44_PSA_00_9.png", "000")
    tree.image("XCAD/train/trainB/001_PPA_30_PSA_00_1.png", "001")
    tree.trap("XCAD/train/trainA/1.png", "XCAD/train/trainC/000_PPA_44_PSA_00_1.png")
    tree.trap("XCAD/train/fake_grayvessel_width/1.png", "XCAD/train/fake_gtvessel_width/1.png")
    tree.trap("XCAD/test/images/000_PPA_44_PSA_00_8.png", "XCAD/test/masks/000_PPA_44_PSA_00_8.png")


def thyroid_ultrasound_cine_clip(tree: Tree) -> None:
    folder = tree.root / "thyroidultrasoundcineclip"
    folder.mkdir(parents=True)
    names = [b"1_"] * 15 + [b"2_1"] * 10 + [b"2_2"] * 10 + [b"33_"] * (STACK - 35)
    with h5py.File(folder / "dataset.hdf5", "w") as file:
        file["image"] = tree.pixels(STACK, SIDE, SIDE)
        file["mask"] = tree.pixels(STACK, SIDE, SIDE) // 128
        file["annot_id"] = np.array(names)
        file["frame_num"] = np.arange(STACK)
    tree.taken["thyroidultrasoundcineclip/dataset.hdf5"] = "several"
    tree.images = -(-STACK // 10)
    tree.text("thyroidultrasoundcineclip/metadata.csv", "annot_id,foldNum\n1_,0\n")


def echonet_dynamic(tree: Tree) -> None:
    for name in ("0X100009310A3BD7FC", "0X1002E8FBACD08477"):
        tree.image(f"EchoNet-Dynamic/EchoNet-Dynamic/Videos/{name}.avi", name)
    tree.text("EchoNet-Dynamic/EchoNet-Dynamic/FileList.csv", "FileName,Split\n0X100009310A3BD7FC,TRAIN\n")
    tree.text("EchoNet-Dynamic/EchoNet-Dynamic/VolumeTracings.csv", "FileName\n0X100009310A3BD7FC.avi\n")


def hc18(tree: Tree) -> None:
    for path, fetus in {
        "training_set/010_HC": "010",
        "training_set/010_2HC": "010",
        "training_set/010_3HC": "010",
        "training_set/011_HC": "011",
        "test_set/300_HC": "300",
    }.items():
        tree.image(f"{path}.png", fetus)
        if path.startswith("training"):
            tree.trap(f"{path}_Annotation.png")
    tree.text("training_set_pixel_size_and_HC.csv", "filename\n")
    tree.text("training_set/training_set_pixel_size_and_HC.csv", "filename\n")


def busi(tree: Tree) -> None:
    root = "Dataset_BUSI_with_GT"
    for kind in ("benign", "malignant", "normal"):
        for number in (1, 100):
            tree.image(f"{root}/{kind}/{kind} ({number}).png", f"{kind} {number}", mode="RGB")
            tree.trap(f"{root}/{kind}/{kind} ({number})_mask.png")
    tree.trap(f"{root}/benign/benign (100)_mask_1.png", f"{root}/benign/benign (100)_mask_2.png")


def ubpd(tree: Tree) -> None:
    for name, patient in {"100_101": "100", "100_111": "100", "7_1": "7"}.items():
        tree.image(f"images/{name}.jpg", patient, mode="RGB")
        tree.text(f"labels/json_train/{name}.json", '{"imageData": "/9j/4AAQSkZJRg=="}')


def messidor(tree: Tree) -> None:
    for path in (
        "Base11/20051020_43808_0100_PP",
        "Base11/20051020_43832_0100_PP",
        "Base33/20051202_55582_0400_PP",
    ):
        tree.image(f"{path}.tif", path, mode="RGB")
    tree.text("Base11/Annotation_Base11.xls", b"\xd0\xcf\x11\xe0")
    tree.text("Annotation Base12.xls", b"\xd0\xcf\x11\xe0")


def refuge2(tree: Tree) -> None:
    for path in ("train/images/g0001", "train/images/n0001", "val/images/V0001", "test/images/T0001"):
        tree.image(f"REFUGE2/{path}.jpg", path, mode="RGB")
        mask = path.replace("images", "mask")
        tree.trap(f"REFUGE2/{mask}.bmp", f"REFUGE2/{mask}.png")


def aptos2019(tree: Tree) -> None:
    for path in ("train_images/000c1434d8d7", "train_images/001639a390f0", "test_images/0005cfc8afb6"):
        tree.image(f"{path}.png", path, mode="RGB")
    tree.text("train.csv", "id_code,diagnosis\n000c1434d8d7,2\n")


def eyepacs(tree: Tree) -> None:
    for path, person in {
        "train/10_left": "10",
        "train/10_right": "10",
        "train/13_left": "13",
        "test/1_right": "1",
    }.items():
        tree.image(f"{path}.jpeg", person, mode="RGB")
    tree.trap("resized_train_cropped/10_left.jpeg", mode="RGB")
    tree.text("trainLabels.csv", "image,level\n10_left,0\n")
    tree.text("test.zip.001", b"PK\x03\x04")


def rose(tree: Tree) -> None:
    for projection in ("SVC", "DVC", "SVC_DVC"):
        for part, number in (("train", "01"), ("train", "30"), ("test", "31")):
            tree.image(f"data/ROSE-1/{projection}/{part}/img/{number}.tif", f"ROSE-1, {number}")
            tree.trap(f"data/ROSE-1/{projection}/{part}/gt/{number}.tif")
    tree.trap("data/ROSE-1/SVC/train/thick_gt/01.tif", "data/ROSE-1/SVC/train/thin_gt/01.tif")
    tree.image("data/ROSE-2/train/original/1.png", "ROSE-2, 1")
    tree.trap("data/ROSE-2/train/gt/1.png")


def _octa500(tree: Tree, wanted: str) -> None:
    for folder, eyes in {
        "OCTA_6mm_part8/OCTA_6mm/Projection Maps": ("10001", "10300"),
        "OCTA_3mm_part3/OCTA_3mm/Projection Maps": ("10301",),
        "copy/OCTA_3M/ProjectionMaps": ("10500",),
    }.items():
        for eye in eyes:
            for kind, layers in (("OCTA", ("FULL", "ILM_OPL", "OPL_BM")), ("OCT", ("FULL", "ILM_OPL", "OPL_BM"))):
                for layer in layers:
                    path = f"{folder}/{kind}({layer})/{eye}.bmp"
                    if kind == wanted:
                        tree.image(path, eye)
                    else:
                        tree.trap(path)
    tree.trap("OCTA_6mm_part1/OCTA_6mm/OCT/10001/1.bmp", "OCTA_6mm_part1/OCTA_6mm/OCTA/10001/10.bmp")
    tree.trap("Label/GT_LargeVessel/10001.bmp")
    tree.text("OCTA_6mm_part8/OCTA_6mm/Text labels.xlsx", b"PK\x03\x04")


def octa500_octa(tree: Tree) -> None:
    _octa500(tree, "OCTA")


def octa500_oct(tree: Tree) -> None:
    _octa500(tree, "OCT")


def zhanglabdata_oct(tree: Tree) -> None:
    for path, patient in {
        "train/CNV/CNV-1016042-1": "1016042",
        "train/CNV/CNV-1016042-2": "1016042",
        "train/DRUSEN/DRUSEN-1016042-1": "1016042",
        "test/NORMAL/NORMAL-1038998-1": "1038998",
    }.items():
        tree.image(f"ZhangLabData/CellData/OCT/{path}.jpeg", patient)
    tree.trap("ZhangLabData/CellData/chest_xray/train/NORMAL/NORMAL-1038998-0001.jpeg")


def bbbc041v1(tree: Tree) -> None:
    for path in ("8d02117d-6c71-4e47-b50a-6cc8d5eb1d55.png", "ab21c9d4-1d4c-4d4b-a2d5-0f5ad0f4f4b0.jpg"):
        tree.image(f"malaria/malaria/images/{path}", path, mode="RGB")
    tree.text("malaria/malaria/training.json", "[]")


def lacuna_malaria_detection_challenge(tree: Tree) -> None:
    for name in ("id_u3q6jdck4j", "id_ksijc9q4g5"):
        tree.image(f"images/{name}.jpg", name, mode="RGB")
    tree.text("Train.csv", "Image_ID,class\nid_u3q6jdck4j.jpg,NEG\nid_u3q6jdck4j.jpg,WBC\n")
    tree.text("SampleSubmission.csv", "Image_ID\n")


def lacuna_malaria_datasets(tree: Tree) -> None:
    for folder in ("Thick_Ghana", "Thin_Images_Ghana", "Thin_Uganda"):
        name = "1666873320000"  # the same in all: it is a time
        tree.image(f"{folder}/images/{name}.jpg", f"{folder} {name}", mode="RGB")
        tree.text(f"{folder}/Labels-YOLO/{name}.txt", "0 0.5 0.5 0.1 0.1\n")
        tree.text(f"{folder}/Labels-CSV.csv", "filename\n")
    tree.image("Thick_Ghana/1666873320001.jpg", "Thick_Ghana 1666873320001", mode="RGB")
    tree.text("Thick_Ghana.part1.rar", b"Rar!\x1a\x07\x01\x00")


def segpath(tree: Tree) -> None:
    for name, slide in {
        "panCK_Epithelium/panCK_Epithelium_024_067584_052224": "panCK 024",
        "panCK_Epithelium/panCK_Epithelium_024_068608_052224": "panCK 024",
        "panCK_Epithelium/panCK_Epithelium_025_067584_052224": "panCK 025",
        "CD3CD20_Lymphocyte/CD3CD20_Lymphocyte_024_000984_000000": "CD3CD20 024",
        "MNDA_MyeloidCell/MNDA_MyeloidCell_101_000984_000000": "MNDA 101",
    }.items():
        tree.image(f"{name}_HE.png", slide, mode="RGB")
        tree.trap(f"{name}_mask.png")
    tree.text("panCK_fileinfo.csv", gzip.compress(b"filename,train_val_test\n"))


def hyperkvasir(tree: Tree) -> None:
    labeled, free = "hyper-kvasir-labeled-images/labeled-images", "hyper-kvasir-unlabeled-images/unlabeled-images"
    for path in (
        f"{labeled}/lower-gi-tract/pathological-findings/polyps/cju0qkwl35piu0993l0dewei2.jpg",
        f"{labeled}/upper-gi-tract/anatomical-landmarks/z-line/0b0d5c2e-5f6c-4c07-9f0f-3f3a1c6c3b7e.jpg",
        f"{free}/images/1b1d5c2e-5f6c-4c07-9f0f-3f3a1c6c3b7e.jpg",
    ):
        tree.image(path, path, mode="RGB")
    for folder in ("images", "masks"):
        path = f"hyper-kvasir-segmented-images/segmented-images/{folder}/cju0qkwl35piu0993l0dewei2.jpg"
        tree.trap(path, mode="RGB")
    tree.trap("hyper-kvasir-labeled-videos/labeled-videos/lower-gi-tract/polyps/1.avi")
    tree.text("hyper-kvasir-segmented-images/segmented-images/bounding-boxes.json", "{}")


def cataract_101(tree: Tree) -> None:
    for case in ("269", "270"):
        tree.image(f"cataract-101/videos/case_{case}.mp4", case)
    tree.text("cataract-101/videos.csv", "VideoID;Frames\n269;9676\n")


def pitvis2023(tree: Tree) -> None:
    for number in ("01", "24"):
        tree.image(f"26531686/video_{number}.mp4", number)
        tree.text(f"26531686/annotations_{number}.csv", "int_time\n")
    tree.text("26531686/map_steps.csv", "int_step\n")
    tree.text("26531686/video_encoder_details.txt", "fps 24\n")


def endoscapes_cvs(tree: Tree) -> None:
    for path, video in {
        "train/1_14025": "1",
        "train/1_14050": "1",
        "val/121_23375": "121",
        "test/166_44300": "166",
    }.items():
        tree.image(f"endoscapes/{path}.jpg", video, mode="RGB")
        part, name = path.split("/")
        tree.trap(f"endoscapes/{part}_seg/{name}.jpg", mode="RGB")
        link = tree.root / "endoscapes" / "all" / f"{name}.jpg"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path("..") / f"{path}.jpg")
    tree.trap("endoscapes/semseg/1_14050.png")
    tree.text("endoscapes/train_vids.txt", "1.000000000000000000e+00\n")
    tree.text("endoscapes/all_metadata.csv", "vid,frame\n")


def psi_ava(tree: Tree) -> None:
    for case in ("CASE001", "CASE021"):
        for frame in ("00000", "00001"):
            tree.image(f"PSI-AVA/keyframes/{case}/{frame}.jpg", case, mode="RGB")
            tree.trap(f"PSI-AVA/images_8_frames_per_second/keyframes/{case}/{frame}.jpg", mode="RGB")
    tree.text("PSI-AVA/TAPIR_trained_models/model.pyth", b"\x80\x02")


def isic_2024(tree: Tree) -> None:
    rows = {"ISIC_0015670": "IP_0012345", "ISIC_0015845": "IP_0012345", "ISIC_0096034": "IP_9999999"}
    for name, patient in rows.items():
        tree.image(f"train-image/image/{name}.jpg", patient, mode="RGB")
    table = "".join(f"{name},0,{patient}\n" for name, patient in rows.items())
    tree.text("train-metadata.csv", f"isic_id,target,patient_id\n{table}")
    for name in ("train-image", "test-image"):
        with h5py.File(tree.root / f"{name}.hdf5", "w") as file:
            file["ISIC_0015670"] = np.void((tree.root / "train-image/image/ISIC_0015670.jpg").read_bytes())


TREES: dict[str, Callable[[Tree], None]] = {
    "AutoPET-CT": autopet_ct,
    "ImageCAS": imagecas,
    "TopBrain-CT": topbrain_ct,
    "AutoPET-PET": autopet_pet,
    "AutoPET-SUV": autopet_suv,
    "TotalSegmentator-MR": totalsegmentator_mr,
    "ACDC": acdc,
    "MRNet": mrnet,
    "Duke-Breast-Cancer-MRI": duke_breast_cancer_mri,
    "Prostate-MRI-US-Biopsy": prostate_mri_us_biopsy,
    "TopBrain-MR": topbrain_mr,
    "BraTS-GLI": brats_gli,
    "LLDMMR": lldmmr,
    "ChestX-ray8": chestx_ray8,
    "CheXpert": chexpert,
    "Mammo-Bench": mammo_bench,
    "MURA": mura,
    "vzrad2": vzrad2,
    "ADSD": adsd,
    "ARCADE": arcade,
    "XACD": xacd,
    "Thyroid Ultrasound Cine-clip": thyroid_ultrasound_cine_clip,
    "EchoNet-Dynamic": echonet_dynamic,
    "HC18": hc18,
    "BUSI": busi,
    "UBPD": ubpd,
    "MESSIDOR": messidor,
    "REFUGE2": refuge2,
    "APTOS2019": aptos2019,
    "EyePACS": eyepacs,
    "ROSE": rose,
    "OCTA500-OCTA": octa500_octa,
    "OCTA500-OCT": octa500_oct,
    "ZhangLabData-OCT": zhanglabdata_oct,
    "BBBC041v1": bbbc041v1,
    "Lacuna Malaria Detection Challenge": lacuna_malaria_detection_challenge,
    "Lacuna Malaria Datasets": lacuna_malaria_datasets,
    "SegPath": segpath,
    "HyperKvasir": hyperkvasir,
    "Cataract-101": cataract_101,
    "PitVis2023": pitvis2023,
    "Endoscapes-CVS": endoscapes_cvs,
    "PSI-AVA": psi_ava,
    "ISIC 2024": isic_2024,
}


def make_tree(name: str, root: Path) -> Tree:
    """Make the tree of a source below a folder."""
    tree = Tree(name, root)
    TREES[name](tree)
    return tree
