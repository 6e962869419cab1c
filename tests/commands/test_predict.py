"""dexcore predict, as one calls it: files of several kinds, labels and masks, pictures, refusals."""

import csv
import io
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("evaluate", "data")]

from made_files import write_dicom
from made_tasks import SEGMENTATION, masked, picture, save, write
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

from dexcore.cli import main
from dexcore.data.modality import Modality
from dexcore.evaluate.finetuning.predictions import Predictor
from dexcore.evaluate.prediction.files import AskedFile
from dexcore.evaluate.prediction.images import described, input_of, plane_image, task_image
from dexcore.evaluate.prediction.predict import predict_file
from dexcore.evaluate.prediction.written import Table, write_prediction
from dexcore.evaluate.scores.predictions import read_mask
from dexcore.evaluate.tasks import Task
from dexcore.evaluate.tasks.pixels import PixelsError, read_plane
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, TaskDescription, TaskModel
from dexcore.nn import RoutingRule, route_by_rule, set_mode, set_rule

ILL = ("sound", "ill")


def encoder(dense=False, **kwargs):
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0} | kwargs
    vit = VisionTransformer(**sizes) if dense else DEXVisionTransformer(**sizes, num_experts=3)
    vit.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for block in vit.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
        if not dense:
            nn.init.normal_(block.mlp.router.weight)
    return vit


def saved(folder, kind="classification", classes=ILL, dense=False, modalities=("X-ray",), **keys):
    crop = "whole" if "segmentation" in kind else "center"
    task = TaskDescription("made", kind, classes, modalities, crop=crop, **keys)
    torch.manual_seed(1)
    model = TaskModel(encoder(dense), task)
    model.set_preprocessing((0.5,) * 3, (0.25,) * 3)
    if task.is_segmentation:  # weights that leave no class out
        nn.init.normal_(model.head.logits.weight)
    else:
        nn.init.normal_(model.head.linear.weight)
    model.save_pretrained(folder)
    return folder


def rows_of(out):
    return list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text())))


def predict(model, out, *images, options=()):
    return main(["predict", *map(str, images), "--model", str(model), "--out", str(out), "--device", "cpu", *options])


def test_labels_of_several_files_and_a_picture_of_each(tmp_path, capsys):
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    png = save(tmp_path / "in" / "a.png", picture(0, (40, 30, 3)))
    dicom = write_dicom(tmp_path / "in" / "b.dcm", picture(1, (24, 20)).astype(np.uint16) * 100)
    assert predict(model, out, png, dicom) == 0
    told = capsys.readouterr().out
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [str(png), str(dicom)]
    for row in rows:
        chances = [float(row[f"probability of {name}"]) for name in ILL]
        assert sum(chances) == pytest.approx(1, abs=1e-5)
        assert row["label"] == ILL[int(np.argmax(chances))]
        assert f"{row['image']}: {row['label']} (" in told
    for name in ("a", "b"):
        drawn = np.asarray(Image.open(out / f"{name}_picture.png").convert("RGB"))
        assert drawn.shape[0] > 400
        assert drawn.std() > 20
    assert sorted(path.name for path in out.iterdir()) == ["a_picture.png", "b_picture.png", "predictions.csv"]


def test_a_mask_has_the_images_own_size_and_is_what_fine_tuning_would_have_saved(tmp_path):
    task = Task.open(write(tmp_path / "task", masked(tmp_path / "task"), **SEGMENTATION))
    model, out = saved(tmp_path / "model", "segmentation", ("background", "lesion")), tmp_path / "out"
    opened = TaskModel.from_pretrained(model)
    assert opened.task.crop == described(task).crop
    expected = Predictor(opened, task, "fp32", 16).predict("test", tmp_path / "theirs", "made", 0)
    images = [task.spec.located(name) for name in expected.image]
    assert predict(model, out, *images, options=["--no-pictures"]) == 0
    for row, name in enumerate(expected.image):
        mask = np.asarray(Image.open(out / f"{Path(name).stem}_mask.png"))
        assert mask.shape == (20, 24)
        assert len(np.unique(mask)) == 2
        assert np.mean(mask == expected.mask(row)) > 0.995  # one batch there, one image here
    shares = rows_of(out)[0]
    assert float(shares["share of lesion"]) == pytest.approx(read_mask(str(out / "3_mask.png")).mean(), abs=1e-6)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_network_is_shown_what_it_was_shown_in_training(kind, tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    write_dicom(folder / "a.dcm", picture(0, (30, 20)).astype(np.uint16) * 100, PixelSpacing=[1, 2])
    rows = [{"image": "a.dcm", "mask": "m.png", "label": "ill", "split": "train", "case": "1"}]
    said = SEGMENTATION if kind == "segmentation" else {}
    task = Task.open(write(folder, rows, **said))
    about = described(task)
    shown = plane_image(read_plane(str(folder / "a.dcm")), about, Modality.XRAY)
    assert np.array_equal(shown, task_image(task, task.rows[0]))
    assert shown.shape == ((30, 20) if kind == "segmentation" else (30, 40))
    vit = encoder()
    vit.set_preprocessing((0.5,) * 3, (0.25,) * 3)
    assert input_of(vit, about)(shown).shape == (3, 16, 16)


def test_pixels_whose_size_the_tasks_table_said_are_asked_for(tmp_path, capsys):
    """Else a file by itself would be shown unlike the images of training and test, in silence."""
    folder = tmp_path / "task"
    image = save(folder / "a.png", picture(0, (30, 20)))
    row = {"image": "a.png", "label": "ill", "split": "train", "case": "1"}
    plain = Task.open(write(folder, [row], "plain"))
    task = Task.open(write(folder, [row | {"spacing_y": 3, "spacing_x": 1}]))
    assert not described(plain).table_spacing
    about = described(task)
    assert about.table_spacing
    write_dicom(folder / "b.dcm", picture(1, (24, 20)), PixelSpacing=[1, 2])
    rows = [row | {"image": "b.dcm", "spacing_y": 0.5, "spacing_x": 1}, row | {"spacing_y": 2, "spacing_x": 2}]
    assert not described(Task.open(write(folder, rows, "imported"))).table_spacing  # as the files say
    shown = AskedFile(str(image), about, spacing=(3, 1)).image(str(image))
    assert shown.shape == (90, 20)
    assert np.array_equal(shown, task_image(task, task.rows[0]))
    model, out = saved(tmp_path / "model", normalization="div255", table_spacing=True), tmp_path / "out"
    assert TaskModel.from_pretrained(model).task.table_spacing
    assert predict(model, out, image, options=["--no-pictures"]) == 2
    assert f"{image}: does not say how large its pixels are" in capsys.readouterr().err
    assert predict(model, out, image, options=["--no-pictures", "--spacing", "3", "1"]) == 0
    assert capsys.readouterr().err == ""
    assert predict(model, out, folder / "b.dcm", options=["--no-pictures"]) == 0
    assert (
        "b.dcm says that its pixels are 1 x 2 mm; of the training's images a table said it" in capsys.readouterr().err
    )
    assert predict(model, out, image, options=["--spacing", "0", "1"]) == 2
    assert "--spacing must be mm between rows and between columns, above 0, got 0 1" in capsys.readouterr().err
    masks = saved(tmp_path / "masks", "segmentation")
    assert predict(masks, tmp_path / "other", image, options=["--spacing", "3", "1"]) == 2
    assert "--spacing is for labels" in capsys.readouterr().err


def test_a_nifti_volume_gets_a_mask_volume_with_its_affine(tmp_path, capsys):
    model = saved(tmp_path / "model", "segmentation", ("background", "lesion"), modalities=("MR",), axis="coronal")
    voxels = np.random.default_rng(0).integers(0, 900, (9, 6, 8)).astype(np.int16)
    affine = np.array([[0, -1.5, 0, 10], [1.2, 0, 0, -5], [0, 0, -3, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    assert predict(model, tmp_path / "out", tmp_path / "scan.nii.gz", options=["--no-pictures"]) == 0
    made = nibabel.load(tmp_path / "out" / "scan_mask.nii.gz")
    assert made.shape == voxels.shape
    np.testing.assert_allclose(made.affine, affine)
    mask = np.asarray(made.dataobj)
    assert made.get_data_dtype() == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    # A slice by itself is the slice of the volume: coronal ones run along the file's first axis, the head on top.
    one = f"{tmp_path / 'scan.nii.gz'}#coronal=3"
    assert predict(model, tmp_path / "one", one, options=["--no-pictures"]) == 0
    plane = np.asarray(Image.open(tmp_path / "one" / "scan_coronal3_mask.png"))
    turned = nibabel.as_closest_canonical(made)
    assert np.array_equal(np.asarray(turned.dataobj)[:, 3].T[::-1, ::-1], plane)
    rows = rows_of(tmp_path / "out")
    assert [row["image"] for row in rows] == [str(tmp_path / "scan.nii.gz"), *(
        f"{tmp_path / 'scan.nii.gz'}#coronal={number}" for number in range(9)
    )]  # fmt: skip
    assert float(rows[0]["share of lesion"]) == pytest.approx(mask.mean(), abs=1e-5)
    assert "(9 images)" in capsys.readouterr().out


def test_frames_get_a_mask_each_and_a_volume_of_labels_the_mean_of_its_slices(tmp_path):
    model, out = saved(tmp_path / "model", "segmentation", ("background", "lesion")), tmp_path / "out"
    frames = np.stack([picture(number, (20, 24)) for number in range(3)])
    dicom = write_dicom(tmp_path / "cine.dcm", frames)
    assert predict(model, out, dicom, options=["--no-pictures"]) == 0
    assert sorted(path.name for path in out.glob("*.png")) == [f"cine_{number}_mask.png" for number in range(3)]
    labels = saved(tmp_path / "labels", modalities=("MR",))
    nibabel.save(nibabel.Nifti1Image(frames.astype(np.int16), np.eye(4)), tmp_path / "scan.nii")
    assert predict(labels, tmp_path / "other", tmp_path / "scan.nii") == 0
    whole, *slices = [float(row["probability of ill"]) for row in rows_of(tmp_path / "other")]
    assert len(slices) == 24
    assert whole == pytest.approx(np.mean(slices), abs=1e-5)
    assert (tmp_path / "other" / "scan_picture.png").is_file()


@pytest.mark.parametrize("kind", ["multilabel", "multilabel_segmentation"])
def test_a_multilabel_task_may_say_several_classes_or_none(kind, tmp_path, capsys):
    model, out = saved(tmp_path / "model", kind, ("wet", "dry", "other")), tmp_path / "out"
    image = save(tmp_path / "a.png", picture(3))
    options = ["--no-pictures"] if kind == "multilabel" else []
    assert predict(model, out, image, options=options) == 0
    (row,) = rows_of(out)
    if kind == "multilabel":
        above = [name for name in ("wet", "dry", "other") if float(row[f"probability of {name}"]) > 0.5]
        assert row["label"] == ";".join(above)
        return
    mask = read_mask(str(out / "a_mask.png"), channels=3)
    assert mask.shape == (3, 20, 24)
    for number, name in enumerate(("wet", "dry", "other")):
        assert float(row[f"share of {name}"]) == pytest.approx(mask[number].mean(), abs=1e-6)


def test_a_dense_model_and_director_mode_have_no_experts_to_show(tmp_path, capsys):
    image = save(tmp_path / "a.png", picture(0))
    dense, dex = saved(tmp_path / "dense", dense=True), saved(tmp_path / "dex")
    assert predict(dense, tmp_path / "1", image) == 0
    assert predict(dex, tmp_path / "2", image) == 0
    assert predict(dex, tmp_path / "3", image, options=["--mode", "director"]) == 0
    widths = [Image.open(tmp_path / number / "a_picture.png").width for number in "123"]
    assert widths[0] == widths[2] < widths[1]
    assert predict(dense, tmp_path / "4", image, options=["--mode", "director"]) == 2
    assert "is a dense model: it has no experts" in capsys.readouterr().err


def test_another_mode_than_that_of_the_training_is_told(tmp_path, capsys):
    image, dex = save(tmp_path / "a.png", picture(0)), saved(tmp_path / "dex")
    for mode, told in ((None, False), ("experts", False), ("director", True)):
        options = ["--no-pictures", *(["--mode", mode] if mode else [])]
        assert predict(dex, tmp_path / "out", image, options=options) == 0
        assert ("its head reads what it was not trained on" in capsys.readouterr().err) == told
    model = TaskModel.from_pretrained(dex)
    set_mode(model, "director")
    model.save_pretrained(tmp_path / "director")
    for mode, told in (("director", False), ("experts", True)):
        options = ["--no-pictures", "--mode", mode]
        assert predict(tmp_path / "director", tmp_path / "out", image, options=options) == 0
        assert ("was fine-tuned and saved in director mode" in capsys.readouterr().err) == told


@pytest.mark.parametrize("rule", [RoutingRule("fixed"), RoutingRule("oracle", modalities=("CT", "X-ray"))])
def test_a_rule_chooses_the_experts_of_an_image_by_its_name_or_modality(rule, tmp_path, capsys):
    images = [save(tmp_path / f"{name}.png", picture(number)) for number, name in enumerate("abc")]
    model = TaskModel.from_pretrained(saved(tmp_path / "dex"))
    set_rule(model, rule)
    model.save_pretrained(tmp_path / "ruled")
    assert predict(tmp_path / "ruled", tmp_path / "out", *images, options=["--no-pictures"]) == 0
    for path in images:
        found = predict_file(model, AskedFile(str(path), model.task))
        names = [str(path), "another"]
        shown = input_of(model.encoder, model.task)(plane_image(read_plane(str(path)), model.task, Modality.XRAY))
        route_by_rule(model, names, ["X-ray"] * 2)
        with torch.no_grad():
            expected = model.probabilities(model(torch.stack([shown, shown])))[0]
        assert np.allclose(found.probabilities[0], expected.numpy(), atol=1e-6)
        for row, chosen in zip(found.looked.gates, rule.choose([(3, 2)] * 2, names, ["X-ray"] * 2), strict=True):
            assert set(np.flatnonzero(row)) == set(chosen[0])
    set_rule(model, RoutingRule("oracle", modalities=("CT", "MR")))
    model.save_pretrained(tmp_path / "other")
    capsys.readouterr()
    assert predict(tmp_path / "other", tmp_path / "out", images[0]) == 2
    assert f"{images[0]}: modality: 'X-ray' is none of those" in capsys.readouterr().err
    assert (
        predict(tmp_path / "other", tmp_path / "out", images[0], options=["--no-pictures", "--mode", "director"]) == 0
    )


def test_a_file_that_says_its_modality_is_taken_at_its_word(tmp_path, capsys):
    """The values of CT and MR come to [0, 1] in other ways."""
    pixels = (picture(1, (24, 20)).astype(np.int16) - 128) * 9
    both, one = saved(tmp_path / "both", modalities=("CT", "MR")), saved(tmp_path / "one", modalities=("MR",))
    found = {}
    for word, said in (("CT", "CT"), ("MR", "MR"), ("other", "CT")):
        image = write_dicom(tmp_path / f"{word}.dcm", pixels, Modality=said, RescaleSlope=1, RescaleIntercept=0)
        assert predict(both if word != "other" else one, tmp_path / word, image, options=["--no-pictures"]) == 0
        found[word] = rows_of(tmp_path / word)[0]["probability of ill"]
    assert found["CT"] != found["MR"]
    assert found["other"] == found["MR"]
    assert "other.dcm says that it is CT, it was predicted as MR" in capsys.readouterr().err


def test_a_decoder_of_the_first_blocks_has_a_picture_of_these(tmp_path):
    torch.manual_seed(0)
    task = TaskDescription("made", "segmentation", ("background", "lesion"), ("X-ray",), crop="whole")
    made = TaskModel(encoder(depth=3), task, blocks=(1, 2))
    made.save_pretrained(tmp_path / "model")
    image = save(tmp_path / "a.png", picture(0))
    for out, options in (("1", []), ("2", ["--no-pictures"])):
        assert predict(tmp_path / "model", tmp_path / out, image, options=options) == 0
    assert (tmp_path / "1" / "a_picture.png").is_file()


def test_a_block_that_cannot_be_looked_into_costs_the_picture_and_not_the_answer(tmp_path, capsys):
    vit = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0, block_fn=ParallelThingsBlock
    )
    model = TaskModel(vit, TaskDescription("made", "classification", ILL, ("X-ray",), normalization="div255")).eval()
    vit.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    image = save(tmp_path / "a.png", picture(0))
    found = predict_file(model, AskedFile(str(image), model.task))
    assert found.looked is None
    assert "block 2 is a ParallelThingsBlock" in found.unseen
    table = Table(tmp_path / "predictions.csv", model.task)
    write_prediction(found, tmp_path, table)
    (row,) = rows_of(tmp_path)
    assert row["label"] in ILL
    assert row["picture"] == ""
    assert predict_file(model, AskedFile(str(image), model.task), looking=False).unseen == ""


def test_a_model_in_half_precision_predicts(tmp_path):
    model = TaskModel.from_pretrained(saved(tmp_path / "model", "segmentation", ("background", "lesion"))).bfloat16()
    model.save_pretrained(tmp_path / "half")
    assert predict(tmp_path / "half", tmp_path / "out", save(tmp_path / "a.png", picture(0))) == 0
    assert (tmp_path / "out" / "a_picture.png").is_file()


def test_a_broken_file_does_not_keep_others_from_being_predicted(tmp_path, capsys):
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    good, bad = save(tmp_path / "good.png", picture(0)), tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    assert predict(model, out, bad, tmp_path / "missing.png", good, options=["--no-pictures"]) == 2
    told = capsys.readouterr()
    assert f"error: {bad}" in told.err
    assert "missing.png: No such file" in told.err
    assert "2 of 3 files could not be predicted" in told.err
    assert [row["image"] for row in rows_of(out)] == [str(good)]


@pytest.fixture
def scans(tmp_path):
    """A folder as users have them: images of several kinds below it, some of one name, and what is no image."""
    folder = tmp_path / "scans"
    images = [save(folder / case / "a.png", picture(number, (20, 24))) for number, case in enumerate("xy")]
    images.append(write_dicom(folder / "y" / "IM0001", picture(2, (24, 20)).astype(np.uint16) * 100))
    save(folder / "x" / "a_mask.png", (picture(3) > 127).astype(np.uint8))
    save(folder / ".thumbnails" / "a.png", picture(4))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (folder / "model.bin").write_bytes(b"no image")
    (folder / "labels.csv").write_text("image,label\n")
    return folder, sorted(images)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_folder_is_the_image_files_below_it_in_order(kind, scans, tmp_path, capsys):
    folder, images = scans
    model, out, single = saved(tmp_path / "model", kind), tmp_path / "out", tmp_path / "single"
    assert predict(model, out, folder) == 0
    told = capsys.readouterr()
    assert [row["image"] for row in rows_of(out)] == list(map(str, images))
    left = [line for line in told.err.splitlines() if line.startswith("left out: ")]
    assert left == told.err.splitlines()
    assert [line.split(":")[1].strip() for line in left] == [
        str(folder / name) for name in ("model.bin", "x/a_mask.png", "broken.png")
    ]
    assert told.out.splitlines()[-1].endswith("pictures; 3 left out")
    assert predict(model, single, *images) == 0
    assert "left out" not in capsys.readouterr().out
    written = sorted(path.name for path in out.iterdir())
    assert written == sorted(path.name for path in single.iterdir())
    assert len(written) == 1 + len(images) * (2 if kind == "segmentation" else 1)  # none lies over another
    assert all((out / name).read_bytes() == (single / name).read_bytes() for name in written)


def test_of_a_folder_and_files_those_that_are_named_must_be_predicted(scans, tmp_path, capsys):
    folder, images = scans
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    other = save(tmp_path / "other.png", picture(5))
    assert predict(model, out, other, folder, folder / "broken.png", options=["--no-pictures"]) == 2
    told = capsys.readouterr().err
    assert f"error: {folder / 'broken.png'}: " in told
    assert "error: 1 of 5 files could not be predicted" in told
    assert [row["image"] for row in rows_of(out)] == list(map(str, [other, *images]))


def test_a_folder_without_an_image_is_refused_before_anything_is_written(tmp_path, capsys):
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    (tmp_path / "empty" / "labels.csv").write_text("image,label\n")
    assert predict(model, out, tmp_path / "empty") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'empty'}: holds no image that dexcore reads\n"
    (tmp_path / "empty" / "deep" / "a.bin").write_bytes(b"no image")
    assert predict(model, out, tmp_path / "empty") == 2
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"left out: {tmp_path / 'empty' / 'deep' / 'a.bin'}: no kind of image that is read",
        f"error: {tmp_path / 'empty'}: holds no image that dexcore reads (1 left out)",
    ]
    (tmp_path / "empty" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    assert predict(model, out, tmp_path / "empty") == 2
    assert capsys.readouterr().err.endswith("error: none of 1 image files could be predicted\n")
    assert not out.exists()


def test_results_may_lie_in_the_folder_and_are_not_predicted_themselves(scans, tmp_path, capsys):
    folder, images = scans
    model, out = saved(tmp_path / "model", "segmentation", ("background", "lesion")), folder / "predictions"
    for _ in range(2):
        assert predict(model, out, folder) == 0
        assert [row["image"] for row in rows_of(out)] == list(map(str, images))
    capsys.readouterr()
    for other in (folder, folder / "x"):
        before = sorted(folder.rglob("*"))
        assert predict(model, other, folder) == 2
        assert "results could lie over files of yours" in capsys.readouterr().err
        assert sorted(folder.rglob("*")) == before


def test_a_folder_without_an_image_is_left_out_where_others_hold_some(scans, tmp_path, capsys):
    folder, images = scans
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.mkdir(), other.mkdir()
    assert predict(model, out, empty, folder, options=["--no-pictures"]) == 0
    told = capsys.readouterr()
    assert f"left out: {empty}: holds no image that dexcore reads" in told.err.splitlines()
    assert told.out.splitlines()[-1].endswith("; 4 left out")
    assert [row["image"] for row in rows_of(out)] == list(map(str, images))
    assert predict(model, tmp_path / "named", images[0], empty, options=["--no-pictures"]) == 0
    capsys.readouterr()
    assert predict(model, tmp_path / "none", empty, other) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"left out: {empty}: holds no image that dexcore reads",
        f"left out: {other}: holds no image that dexcore reads",
        "error: none of 2 folders holds an image that dexcore reads",
    ]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_results_of_an_earlier_call_below_the_folder_are_left_out_as_one(kind, scans, tmp_path, capsys):
    folder, images = scans
    model = saved(tmp_path / "model", kind)
    earlier, out = folder / "predictions", folder / "predictions2"
    assert predict(model, earlier, folder) == 0
    own = save(folder / "cohort" / "b.png", picture(6))
    (own.parent / "predictions.csv").write_text("image,label\nb.png,ill\n")  # a user's table: its images are taken
    capsys.readouterr()
    assert predict(model, out, folder) == 0
    told = capsys.readouterr()
    assert [row["image"] for row in rows_of(out)] == list(map(str, sorted([*images, own])))
    line = f"left out: {earlier}: results of an earlier call"
    assert [one for one in told.err.splitlines() if str(earlier) in one] == [line]
    assert told.out.splitlines()[-1].endswith("; 4 left out")
    assert predict(model, tmp_path / "out", earlier) == 2
    assert capsys.readouterr().err.splitlines() == [
        line,
        f"error: {earlier}: holds no image that dexcore reads (1 left out)",
    ]


def test_a_folder_is_no_file_to_those_who_ask_about_one(tmp_path):
    task = TaskModel.from_pretrained(saved(tmp_path / "model")).task
    with pytest.raises(PixelsError, match="is a folder, expected files"):
        AskedFile(str(tmp_path), task)


def test_files_of_one_name_get_results_of_their_own_and_earlier_rows_stay(tmp_path):
    model, out = saved(tmp_path / "model", "segmentation", ("background", "lesion")), tmp_path / "out"
    images = [save(tmp_path / folder / "a.png", picture(number)) for number, folder in enumerate("xy")]
    assert predict(model, out, *images, options=["--no-pictures"]) == 0
    masks = [row["mask"] for row in rows_of(out)]
    assert len(set(masks)) == 2
    assert all((out / mask).is_file() for mask in masks)
    third = save(tmp_path / "z" / "b.png", picture(2))
    assert predict(model, out, third, images[0], options=["--no-pictures"]) == 0
    assert sorted(row["image"] for row in rows_of(out)) == sorted(map(str, [*images, third]))


def test_no_call_writes_over_the_masks_of_another_image(tmp_path):
    """A shell loop over CASE/img.png; frames whose masks are called as another file's."""
    model, out = saved(tmp_path / "model", "segmentation", ("background", "lesion")), tmp_path / "out"
    images = [save(tmp_path / folder / "img.png", picture(number)) for number, folder in enumerate("xyz")]
    frames = tmp_path / "x" / "stack.dcm"
    write_dicom(frames, np.stack([picture(number, (20, 24)) for number in range(2)]))
    images.append(save(tmp_path / "x" / "stack_0.png", picture(9, (12, 14))))
    for call in (images[:1], images[1:2], images[2:3], [frames, images[3]], images[1:2]):  # the last one again
        assert predict(model, out, *call, options=["--no-pictures"]) == 0
    rows = [row for row in rows_of(out) if row["mask"]]
    assert len({row["mask"].casefold() for row in rows}) == len(rows) == 6
    assert sorted(row["mask"] for row in rows) == sorted(path.name for path in out.glob("*.png"))
    for row in rows:
        share = read_mask(str(out / row["mask"])).mean()
        assert share == pytest.approx(float(row["share of lesion"]), abs=1e-6), row["image"]


def test_no_call_writes_over_the_picture_of_another_image(tmp_path):
    model, out = saved(tmp_path / "model"), tmp_path / "out"
    for number, folder in enumerate("xy"):
        assert predict(model, out, save(tmp_path / folder / "img.png", picture(number))) == 0
    pictures = [row["picture"] for row in rows_of(out)]
    assert len(set(pictures)) == 2
    assert sorted(pictures) == sorted(path.name for path in out.glob("*.png"))


def test_a_volume_cut_across_another_axis_leaves_no_row_that_names_its_new_mask(tmp_path):
    model = saved(tmp_path / "model", "segmentation", ("background", "lesion"), modalities=("MR",))
    out, voxels = tmp_path / "out", np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii")
    for axis, slices in (("axial", 7), ("coronal", 6)):
        assert predict(model, out, tmp_path / "scan.nii", options=["--no-pictures", "--axis", axis]) == 0
        assert [row["image"].split("#")[-1] for row in rows_of(out)][1:] == [f"{axis}={n}" for n in range(slices)]


def test_what_cannot_be_predicted_is_refused_before_anything_is_written(tmp_path, capsys):
    image, out = save(tmp_path / "in" / "a.png", picture(0)), tmp_path / "out"
    MaskedAutoencoder(encoder(), 8, 1, 2).save_pretrained(tmp_path / "mae")
    several = saved(tmp_path / "several", modalities=("CT", "MR"))
    labels, masks = saved(tmp_path / "labels"), saved(tmp_path / "masks", "segmentation")
    run = tmp_path / "run"
    saved(run / "seed-0" / "model"), saved(run / "seed-1" / "model")
    for model, told in (
        (
            tmp_path / "mae",
            "holds a pre-trained MaskedAutoencoder around a DEXVisionTransformer, which has no head for",
        ),
        (tmp_path / "none", "none: no such folder"),
        (several, f"{image}: does not say which of CT, MR it is of, for which the model is: say --modality"),
        (run, "holds 2 models, expected one: pass"),
    ):
        assert predict(model, out, image) == 2
        assert told in capsys.readouterr().err
        assert not out.exists()
    assert predict(several, out, image, options=["--modality", "Fundus"]) == 2
    assert "--modality is Fundus, the model was fine-tuned on CT, MR" in capsys.readouterr().err
    assert predict(labels, image.parent, image) == 2
    assert "results could lie over files of yours" in capsys.readouterr().err
    assert predict(labels, out, image, options=["--no-pictures"]) == 0
    assert predict(masks, out, image) == 2
    assert "is of another task" in capsys.readouterr().err
    assert predict(run / "seed-1", tmp_path / "other", image, options=["--no-pictures"]) == 0
    assert predict(several, tmp_path / "mr", image, options=["--modality", "mr", "--no-pictures"]) == 0
