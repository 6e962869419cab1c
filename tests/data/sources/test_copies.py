"""Other copies of the sources than those of the trees, by their paths alone: mirrors, exports, releases, roots."""

from pathlib import Path

import pytest

from dexcore.data.assemble.split import Grouping
from dexcore.data.assemble.walk import Found, take_and_leave
from dexcore.data.sources.catalog import recipe

# Source, paths to take, paths to leave.
COPIES = [
    ("TotalSegmentator-MR", ["s0001/mri.nii.gz"], ["s0001/segmentations/spleen.nii.gz", "meta.csv"]),
    (
        "TopBrain-MR",
        ["TopBrain_Data_Release_Batches1n2_081425/imagesTr_topbrain_mr/topcow_mr_004_0000.nii.gz"],
        ["TopBrain_Data_Release_Batches1n2_081425/labelsTr_topbrain_mr/topcow_mr_004.nii.gz"],
    ),
    (
        "ACDC",
        ["training/patient090/patient090_frame04.nii.gz"],
        ["training/patient090/patient090_frame04_gt.nii.gz", "testing/patient101/patient101_frame01.nii.gz"],
    ),
    (
        "BraTS-GLI",
        [
            "ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz",
            "BraTS2024-BraTS-GLI-AdditionalTrainingData/training_data_additional/BraTS-GLI-03064-100/"
            "BraTS-GLI-03064-100-t1n.nii.gz",
        ],
        [],
    ),
    ("ChestX-ray8", ["images/00000013_026.png"], ["sample/sample_labels.csv", "images/preview.png"]),
    (
        "CheXpert",
        [
            "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg",
            "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg",
            "CheXpert-v1.0/train/patient21513/study1/view1_frontal.jpg",
            "CheXpert-v1.0 batch 3 (train 2)/patient21514/study1/view1_frontal.jpg",
        ],
        ["CheXpert-v1.0-small/train.csv", "CheXpert-v1.0 batch 1 (validate & csv)/train_cheXbert.csv"],
    ),
    (
        "vzrad2",
        [f"train/images/15_jpg.rf.{'0a' * 16}.jpg"],
        [f"train/labels/15_jpg.rf.{'0a' * 16}.txt", "data.yaml", f"valid/15_jpg.rf.{'0a' * 16}.jpg_mask.png"],
    ),
    ("ADSD", ["Stenosis detection/dataset/14_002_5_0016.bmp"], ["Stenosis detection/dataset/14_002_5_0016.xml"]),
    (
        "XACD",
        ["XCAD/train/img/000_PPA_44_PSA_00_8.png", "data/train/img/000_PPA_44_PSA_00_8.png"],
        ["XCAD/train/fake_grayvessel_width/5.png", "XCAD/test/img/000_PPA_44_PSA_00_8.png", "XCAD/test/gt/1.png"],
    ),
    ("EchoNet-Dynamic", ["EchoNet-Dynamic/Videos/0X4F55DC7F6080587E.avi"], ["EchoNet-Dynamic/VolumeTracings.csv"]),
    ("MESSIDOR", ["data/Base34/20060522_43741_0100_PP.tif"], ["data/Base34/Annotation_Base34.xls", "Base35/a.tif"]),
    (
        "REFUGE2",
        [
            "REFUGE2-Training/REFUGE1-Train-400/Images/Glaucoma/g0001.jpg",
            "REFUGE2-Training/REFUGE1-Val-400/REFUGE-Validation400/V0001.jpg",
            "REFUGE2-Training/REFUGE1-Test-400/Images/T0001.jpg",
        ],
        [
            "REFUGE2-Training/REFUGE1-Train-400/Disc_Cup_Masks/Glaucoma/g0001.bmp",
            "Training400/Glaucoma/g0001.jpg",
            "REFUGE-Validation400/V0001.jpg",
        ],
    ),
    ("APTOS2019", ["aptos/test_images/0005cfc8afb6.png"], ["aptos/resized_train/0005cfc8afb6.png", "aptos/test.csv"]),
    ("ROSE", ["ROSE-1/SVC_DVC/test/img/09.png"], ["ROSE-1/SVC_DVC/test/gt/09.png", "ROSE-1/SVC/train/thin_gt/09.tif"]),
    (
        "OCTA500-OCT",
        ["OCTA_3mm_part3/OCTA_3mm/Projection Maps/OCT(ILM_OPL)/10301.bmp"],
        ["OCTA_3mm_part3/OCTA_3mm/Projection Maps/OCTA(ILM_OPL)/10301.bmp", "Label/GT_Artery/10301.bmp"],
    ),
    ("ZhangLabData-OCT", ["CellData/OCT/test/DME/DME-1102381-2.jpeg"], ["OCT2017/val/CNV/CNV-6294785-1.jpeg"]),
    ("BBBC041v1", ["malaria/images/8d02117d-6c71-4e47-b50a-6cc8d5eb1d55.png"], ["malaria/test.json"]),
    (
        "Lacuna Malaria Datasets",
        ["Thick_Ghana.part1/images/1666873320000.jpg", "Thin_Uganda/Thin_Uganda/images/1666873320000.jpg"],
        ["Thin_Uganda/labels_yolo/1666873320000.txt", "images/1666873320000.jpg"],
    ),
    (
        "HyperKvasir",
        ["labeled-images/upper-gi-tract/anatomical-landmarks/pylorus/0.jpg", "unlabeled-images/images/1.jpg"],
        ["segmented-images/images/2.jpg", "segmented-images/masks/2.jpg"],
    ),
    ("Endoscapes-CVS", ["endoscapes/test/166_44300.jpg"], ["endoscapes/insseg/1_14050.npy", "endoscapes/all/1_1.jpg"]),
    ("ISIC 2024", ["isic/train-image/image/ISIC_0015670.jpg"], ["isic/train-image.hdf5", "isic/test-image.hdf5"]),
]


@pytest.mark.parametrize(("name", "take", "leave"), COPIES, ids=[name for name, *_ in COPIES])
def test_other_copies_of_a_source_are_taken_and_left_as_the_first(name, take, leave):
    one = recipe(name)
    source = take_and_leave(one, Path("downloads"), [Found(path, 1, 1) for path in (*leave, *take)])
    assert [file.path for file in source.files] == take
    if name != "ISIC 2024":  # its patients stand in a CSV file
        grouping = Grouping(one, None)
        assert all(grouping.place(path, None) for path in take)


def test_a_patient_of_another_release_is_another_one():
    grouping = Grouping(recipe("BraTS-GLI"), None)
    first, second = (
        grouping.place(f"{folder}/BraTS-GLI-00005-000/BraTS-GLI-00005-000-t1c.nii.gz", None)[0]
        for folder in ("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData", "BraTS2024-BraTS-GLI-TrainingData/data")
    )
    assert first != second
