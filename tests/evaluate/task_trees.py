"""A small tree of each downstream task, as its download unpacks, in the true formats and with its traps.

The recipes are not looked at here: this is what they are measured by.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

SHAPE = (24, 30)
VOLUME = (6, 5, 4)  # x, y, z


class Tree:
    """Files below a folder.

    Attributes:
        cases, splits, labels, masks: of the images that must be taken, by path; of a volume the masks of all slices.
        levels: the value, from 0 to 1, of images that are flat.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.root = root
        self.cases: dict[str, str] = {}
        self.splits: dict[str, str] = {}
        self.labels: dict[str, int] = {}
        self.masks: dict[str, np.ndarray] = {}
        self.levels: dict[str, float] = {}
        self._rng = np.random.default_rng(zlib.crc32(name.encode()))

    def image(self, path: str, case: str, split: str = "", label: int | None = None, rgb: bool = False) -> None:
        """A picture, or a volume, that must be taken."""
        self.cases[path] = case
        if split:
            self.splits[path] = split
        if label is not None:
            self.labels[path] = label
        if ".nii" in path:
            self.volume(path, self._rng.integers(0, 1000, VOLUME).astype(np.int16))
        else:
            self.write(path, self._rng.integers(0, 256, (*SHAPE, 3) if rgb else SHAPE).astype(np.uint8))

    def mask(self, values: tuple[int, ...] = (0, 1)) -> np.ndarray:
        """[height, width] of these values, each of them in it."""
        drawn = self._rng.choice(np.array(values), SHAPE)
        drawn[0, : len(values)] = values
        return drawn

    def labels3(self, values: tuple[int, ...]) -> np.ndarray:
        """[x, y, z] of these values."""
        return self._rng.choice(np.array(values), VOLUME)

    def trap(self, *paths: str) -> None:
        """Files that look like images, and must be left."""
        for path in paths:
            self.write(path, np.zeros(SHAPE, np.uint8))

    def write(self, path: str, pixels: np.ndarray) -> None:
        target = self.target(path)
        Image.fromarray(pixels).save(target)

    def volume(self, path: str, voxels: np.ndarray) -> None:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), self.target(path))

    def text(self, path: str, text: str) -> None:
        self.target(path).write_text(text)

    def target(self, path: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def mapped(values: np.ndarray, classes: dict[int, int]) -> np.ndarray:
    return np.vectorize(classes.__getitem__)(values)


def cut(voxels: np.ndarray, axis: int = 2) -> np.ndarray:
    """[slices, height, width], as radiologists look at them."""
    return np.stack([plane.T[::-1, ::-1] for plane in np.moveaxis(voxels, axis, 0)])


def whs_ct(tree: Tree) -> None:
    classes = {0: 0, 500: 1, 600: 2, 420: 3, 421: 3, 550: 4, 205: 5, 820: 6, 850: 7}
    for number in range(1001, 1005):
        path = f"MM-WHS 2017 Dataset/ct_train/ct_train_{number}_image.nii.gz"
        tree.image(path, str(number))
        voxels = tree.labels3(tuple(classes)).astype(np.int16)
        tree.volume(path.replace("_image", "_label"), voxels)
        tree.masks[path] = cut(mapped(voxels, classes))
    tree.volume("MM-WHS 2017 Dataset/ct_test/ct_test_2001_image.nii.gz", np.zeros(VOLUME, np.int16))


def kipa22(tree: Tree) -> None:
    for number in range(4):
        path = f"train/image/case_{number:05d}.nii.gz"
        tree.image(path, str(number))
        voxels = tree.labels3((0, 1, 2, 3, 4)).astype(np.uint8)
        tree.volume(path.replace("/image/", "/label/"), voxels)
        tree.masks[path] = cut(voxels)


def cholecseg8k(tree: Tree) -> None:
    codes = (50, 11, 21, 13, 12, 31, 23, 24, 25, 32, 22, 33, 5)
    classes = dict(zip(codes, range(13), strict=True)) | {255: 255}
    for video in ("01", "09", "12", "17"):
        for clip in ("00080", "00160"):
            stem = f"CholecSeg8k/video{video}/video{video}_{clip}/frame_{clip}_endo"
            tree.image(f"{stem}.png", video, rgb=True)
            values = tree.mask((*codes, 255))
            tree.write(f"{stem}_watershed_mask.png", np.repeat(values[..., None], 3, 2).astype(np.uint8))
            tree.masks[f"{stem}.png"] = mapped(values, classes)
            tree.trap(f"{stem}_mask.png", f"{stem}_color_mask.png")


def idrid(tree: Tree) -> None:
    names = {"1. Microaneurysms": "MA", "2. Haemorrhages": "HE", "3. Hard Exudates": "EX", "4. Soft Exudates": "SE"}
    names["5. Optic Disc"] = "OD"
    for part, split, numbers in (("a. Training Set", "train", (1, 2)), ("b. Testing Set", "test", (55, 56))):
        for number in numbers:
            path = f"A. Segmentation/1. Original Images/{part}/IDRiD_{number:02d}.jpg"
            tree.image(path, path, split, rgb=True)
            channels = []
            for folder, end in names.items():
                values = tree.mask()
                if end == "SE" and number == 2:
                    channels.append(np.zeros(SHAPE, bool))
                    continue
                file = f"A. Segmentation/2. All Segmentation Groundtruths/{part}/{folder}/IDRiD_{number:02d}_{end}.tif"
                palette = Image.fromarray(values.astype(np.uint8), "P")
                palette.putpalette([0, 0, 0, 76, 0, 0])
                palette.save(tree.target(file))
                channels.append(values > 0)
            tree.masks[path] = np.stack(channels)


def fives(tree: Tree) -> None:
    top = "FIVES A Fundus Image Dataset for AI-based Vessel Segmentation"
    for part in ("train", "test"):
        for number, disease in enumerate("ADGNAD"):
            path = f"{top}/{part}/Original/{number}_{disease}.png"
            tree.image(path, path, "test" if part == "test" else "train|val", rgb=True)
            values = tree.mask()
            tree.write(
                path.replace("Original", "Ground truth"), np.repeat(values[..., None] * 255, 3, 2).astype(np.uint8)
            )
            tree.masks[path] = values


def feta21(tree: Tree) -> None:
    for number in range(4):
        method = "mial" if number < 2 else "irtk"
        path = f"feta_2.1/sub-{number:03d}/anat/sub-{number:03d}_rec-{method}_T2w.nii.gz"
        tree.image(path, str(number))
        voxels = tree.labels3(tuple(range(8))).astype(np.uint8)
        tree.volume(path.replace("_T2w", "_dseg"), voxels)
        tree.masks[path] = cut(voxels)
    tree.text("feta_2.1/participants.tsv", "participant_id\n")


def candi(tree: Tree) -> None:
    codes = [0, *range(2, 6), 7, 8, *range(10, 19), 24, 26, 28, *range(41, 45), 46, 47, *range(49, 55), 58, 60]
    classes = {code: index for index, code in enumerate(codes)}
    for folder, name in (("HC", "HC_001"), ("SS", "SS_002"), ("BPDwithoutPsy", "BPDwoPsy_030"), ("HC", "HC_004")):
        ending = ".nii" if name == "HC_004" else ".nii.gz"
        path = f"SchizBull_2008/{folder}/{name}/{name}_procimg{ending}"
        tree.image(path, name)
        voxels = tree.labels3(tuple(codes)).astype(np.int16)
        tree.volume(path.replace("_procimg", "_seg"), voxels)
        tree.masks[path] = cut(mapped(voxels, classes), axis=1)
        again = f"SchizBull_2008/{folder}/{name}/MNI152_2mm_Linear/{name}_procimg.nii.gz"
        tree.volume(again, np.zeros(VOLUME, np.int16))


def octdl(tree: Tree) -> None:
    lines = ["file_name,disease,patient_id"]
    for index, disease in enumerate(("AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID")):
        for number in range(6):
            name = f"{disease.lower()}_{number}"
            tree.image(f"OCTDL/{disease}/{name}.jpg", f"{disease}{number // 2}", label=index)
            lines.append(f"{name},{disease},{100 * index + number // 2}")
    tree.text("OCTDL_labels.csv", "\n".join(lines))


def icf(tree: Tree) -> None:
    for case in range(5):
        top = f"2021-training-data-ZA/2021-training-data-ZA/case{case}"
        path = f"{top}/images/scan{case}.jpeg"
        tree.image(path, str(case))
        outline = np.zeros(SHAPE, np.uint8)
        outline[5:15, 6:20] = 255
        outline[6:14, 7:19] = 0
        tree.write(f"{top}/masks/other name {case}.png", outline)
        filled = np.zeros(SHAPE, int)
        filled[5:15, 6:20] = 1
        tree.masks[path] = filled


def tnbc(tree: Tree) -> None:
    for slide in range(1, 6):
        for number in range(2):
            path = f"TNBC_NucleiSegmentation/Slide_{slide:02d}/{slide:02d}_{number}.png"
            tree.image(path, str(slide), rgb=True)
            instances = tree.mask((0, 1, 77))
            tree.write(path.replace("Slide_", "GT_"), instances.astype(np.uint8))
            tree.masks[path] = instances > 0
    tree.trap("__MACOSX/TNBC_NucleiSegmentation/Slide_01/._01_0.png")


def lsc(tree: Tree) -> None:
    for index, name in enumerate(("CLL", "FL", "MCL")):
        for number in range(5):
            path = f"{name}/sj-{number}.tif"
            tree.image(path, path, label=index, rgb=True)


def bcss(tree: Tree) -> None:
    groups = {0: 255, 7: 255, 1: 1, 19: 1, 20: 1, 2: 2, 3: 3, 10: 3, 11: 3, 4: 4}
    classes = {code: groups.get(code, 0) for code in range(22)}
    for number, patient in enumerate(("A1-A0SK", "A2-A0CM", "AR-A1AQ", "C8-A12V", "A1-A0SK")):
        name = f"TCGA-{patient}-DX1_xmin{number}_MPP-0.25.png"
        tree.image(f"rgbs_colorNormalized/{name}", patient, rgb=True)
        values = tree.mask(tuple(range(22)))
        tree.write(f"masks/{name}", values.astype(np.uint8))
        tree.masks[f"rgbs_colorNormalized/{name}"] = mapped(values, classes)


def monusac(tree: Tree) -> None:
    train, test = "MoNuSAC_images_and_annotations", "MoNuSAC Testing Data and Annotations"
    names = {"Epithelial": 1, "Lymphocyte": 2, "Macrophage": 3, "Neutrophil": 4, "Ambiguous": 255}
    both, alone = "TCGA-A2-A0ES-01Z-00-DX1", "TCGA-55-1594-01Z-00-DX1"
    slides = [(train, alone, "train|val"), (train, "TCGA-69-7760-01Z-00-DX1", "train|val"), (train, both, "")]
    slides += [(test, both, "test"), (test, "TCGA-2Z-A9JG-01Z-00-DX1", "test")]
    for top, slide, split in slides:
        path = f"{top}/{slide}/{slide}_1.tif"
        mask = np.zeros(SHAPE, int)
        regions = []
        for number, (name, value) in enumerate(names.items()):
            if name == "Ambiguous" and top == train:
                continue
            left, upper = 1 + 5 * number, 2 + number
            mask[upper : upper + 4, left : left + 4] = value
            corners = [(left, upper), (left + 3, upper), (left + 3, upper + 3), (left, upper + 3)]
            vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
            regions.append(
                f'<Annotation Id="{number}"><Attributes><Attribute Name="{name}" Value=""/></Attributes><Regions>'
                f"<Region><Vertices>{vertices}</Vertices></Region></Regions></Annotation>"
            )
        tree.text(path.replace(".tif", ".xml"), f"<Annotations>{''.join(regions)}</Annotations>")
        if split:
            tree.image(path, slide[:12], split, rgb=True)
            tree.masks[path] = mask
        else:
            tree.trap(path)
    tree.text(f"{test}/TCGA-XX-0000/TCGA-XX-0000_1.svs", "no image of ours")


def scr(tree: Tree) -> None:
    names = ("left lung", "right lung", "heart", "left clavicle", "right clavicle")
    for number, stem in enumerate(("JPCLN001", "JPCLN002", "JPCNN001")):
        path = f"JSRT All247images/{stem}.IMG"
        tree.target(path).write_bytes(np.full((2048, 2048), 95 + number, ">u2").tobytes())
        tree.cases[path] = stem
        tree.levels[path] = (4095 - 95 - number) / 4095
        channels = []
        for name in names:
            small = tree.mask()
            large = np.kron(small, np.ones((1024 // 24 + 1, 1024 // 30 + 1), int))[:1024, :1024]
            tree.write(f"scratch/fold{number % 2 + 1}/masks/{name}/{stem}.gif", (large * 255).astype(np.uint8))
            channels.append(large > 0)
        tree.masks[path] = np.stack(channels)


def pdcxr(tree: Tree) -> None:
    for part in ("train", "test"):
        for patient in range(6):
            for film in range(2):
                number = 100 * (part == "test") + patient
                kind, label = ("NORMAL", 0) if patient % 2 else (("BACTERIA", "VIRUS")[film], 1)
                folder = "NORMAL" if label == 0 else "PNEUMONIA"
                path = f"CellData/chest_xray/{part}/{folder}/{kind}-{number:07d}-{film:04d}.jpeg"
                tree.image(path, str(number), "test" if part == "test" else "train|val", label)
    tree.trap("CellData/OCT/train/CNV/CNV-1-1.jpeg", "CellData/chest_xray/train/.DS_Store.png")


def dca1(tree: Tree) -> None:
    for number in range(1, 6):
        path = f"Database_134_Angiograms/{number}.pgm"
        tree.image(path, path)
        values = tree.mask()
        tree.write(f"Database_134_Angiograms/{number}_gt.pgm", (values * 255).astype(np.uint8))
        tree.masks[path] = values


def dias(tree: Tree) -> None:
    for part, split, numbers in (
        ("training", "train", (0, 1)),
        ("validation", "val", (30,)),
        ("test", "test", (40, 41)),
    ):
        for sequence in numbers:
            values = tree.mask()
            tree.write(f"DIAS/{part}/labels/label_s{sequence}.png", (values * 255).astype(np.uint8))
            for frame in range(2):
                path = f"DIAS/{part}/images/image_s{sequence}_i{frame}.png"
                tree.image(path, str(sequence), split)
                tree.masks[path] = values
    tree.trap("DIAS/unlabeled_DSA/image_s60_i0.png")


def sts_tooth_2d(tree: Tree) -> None:
    for part in ("A-PXI", "C-PXI"):
        for number in range(5):
            path = f"SD-Tooth/STS-2D-Tooth/{part}/Labeled/Image/{part}_{number}.png"
            tree.image(path, path)
            values = tree.mask()
            Image.fromarray(values > 0).save(tree.target(path.replace("/Image/", "/Mask/")))
            tree.masks[path] = values
        tree.trap(f"SD-Tooth/STS-2D-Tooth/{part}/Unlabeled/Image/{part}_9.png")


def uns(tree: Tree) -> None:
    for subject in (1, 2, 10, 11, 12):
        for number in (1, 2):
            path = f"ultrasound-nerve-segmentation/train/{subject}_{number}.tif"
            tree.image(path, str(subject))
            values = tree.mask() if number == 1 else np.zeros(SHAPE, int)
            tree.write(path.replace(".tif", "_mask.tif"), (values * 255).astype(np.uint8))
            tree.masks[path] = values
    tree.trap("ultrasound-nerve-segmentation/test/1.tif")


def tn5000(tree: Tree) -> None:
    for number in range(12):
        path = f"TN5000_forReview/JPEGImages/{number:06d}.jpg"
        tree.image(path, path, label=number % 2)
        text = f"<annotation><object><name>{number % 2}</name><bndbox/></object></annotation>"
        tree.text(f"TN5000_forReview/Annotations/{number:06d}.xml", text)


def fhu(tree: Tree) -> None:
    for name in ("000_HC", "001_HC", "001_2HC", "002_HC", "003_HC", "004_HC"):
        path = f"training_set/{name}.png"
        tree.image(path, name[:3])
        outline = np.zeros(SHAPE, np.uint8)
        outline[4:12, 4:16] = 255
        outline[5:11, 5:15] = 0
        tree.write(f"training_set/{name}_Annotation.png", outline)
        filled = np.zeros(SHAPE, int)
        filled[4:12, 4:16] = 1
        tree.masks[path] = filled


def autopet_org(tree: Tree) -> None:
    classes = {value: min(value, 11) for value in range(13)}
    for number in range(5):
        patient, study = f"PETCT_{number:010x}", f"07-17-200{number}-NA-PET-CT Ganz. {number}.5"
        path = f"FDG-PET-CT-Lesions/{patient}/{study}/SUV.nii.gz"
        tree.image(path, patient)
        tree.volume(path.replace("SUV", "CTres"), np.zeros(VOLUME, np.int16))
        voxels = tree.labels3(tuple(range(13))).astype(np.uint8)
        tree.volume(f"AutoPET-OrganlabelsTr/{patient}_{study}_.nii.gz", voxels)
        tree.masks[path] = cut(mapped(voxels, classes))
    tree.volume("FDG-PET-CT-Lesions/PETCT_ffffffffff/study/SUV.nii.gz", np.zeros(VOLUME, np.int16))


def slsc(tree: Tree) -> None:
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        for number in range(14):
            stem = f"{part}/{{}}/ISIC_{part}{number}"
            path = "skin-lesion-segmentation-classification/" + stem.format("images") + ".jpg"
            tree.image(path, path, split, number % 7, rgb=True)
            x, y = np.array([3, 20, 20, 3]) / SHAPE[1], np.array([4, 4, 15, 15]) / SHAPE[0]
            points = " ".join(f"{value:.6f}" for pair in zip(x, y, strict=True) for value in pair)
            text = f"{number % 7} {points}\n{number % 7} {points}\n"
            tree.text("skin-lesion-segmentation-classification/" + stem.format("labels") + ".txt", text)
            mask = np.zeros(SHAPE, int)
            mask[4:16, 3:21] = 1
            tree.masks[path] = mask


TREES: dict[str, Callable[[Tree], None]] = {
    "whs-ct": whs_ct,
    "kipa22": kipa22,
    "cholecseg8k": cholecseg8k,
    "idrid": idrid,
    "fives": fives,
    "feta21": feta21,
    "candi": candi,
    "octdl": octdl,
    "icf": icf,
    "tnbc": tnbc,
    "lsc": lsc,
    "bcss": bcss,
    "monusac": monusac,
    "scr": scr,
    "pdcxr": pdcxr,
    "dca1": dca1,
    "dias": dias,
    "sts-tooth-2d": sts_tooth_2d,
    "uns": uns,
    "tn5000": tn5000,
    "fhu": fhu,
    "autopet-org": autopet_org,
    "slsc-seg": slsc,
    "slsc-cls": slsc,
}


def make_tree(name: str, root: Path) -> Tree:
    tree = Tree(name, root)
    TREES[name](tree)
    return tree
