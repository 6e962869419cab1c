"""The 44 recipes, each on a small tree in the layout that its source has after the download."""

import os
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import pytest
import yaml
from trees import TREES, make_tree

from dexcore.cli import main
from dexcore.data import build_store
from dexcore.data.assemble.discover import classify, inspect
from dexcore.data.assemble.hand import Hand
from dexcore.data.assemble.split import Grouping
from dexcore.data.assemble.walk import sources_by, walk
from dexcore.data.modality import SOURCES
from dexcore.data.sources.catalog import recipe, recipes
from dexcore.data.sources.listing import layout_word
from dexcore.data.sources.recipe import RecipeError
from dexcore.data.store import Manifest, Store

DOWNLOADS = ("AutoPET", "TopBrain", "OCTA500")  # each holds several sources
PARTLY_KNOWN = {
    "Mammo-Bench",
    "vzrad2",
    "XACD",
    "UBPD",
    "ROSE",
    "OCTA500-OCTA",
    "OCTA500-OCT",
    "Lacuna Malaria Detection Challenge",
    "Lacuna Malaria Datasets",
}


def found(root, wanted):
    """What a build would read of a folder by these recipes: {source: {path: group}}."""
    result = {}
    for source in sources_by(root, walk(root).files, wanted):
        paths = [file.path for file in source.files]
        seen = inspect((str(root), source.files), Hand(None, driver=os.getpid()))
        items = classify(source, dict(zip(paths, seen, strict=True)), Grouping(source.recipe, None), str).items
        result[source.recipe.name] = {file.path: item.group for item in items for file in item.files}
    return result


def is_one_to_one(pairs):
    pairs = set(pairs)
    return len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def download(name):
    return next((one for one in DOWNLOADS if name.startswith(one)), name)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """All trees below one folder, and what must be taken of each: {source: Tree}."""
    root = tmp_path_factory.mktemp("downloads")
    return root, {name: make_tree(name, root / download(name)) for name in TREES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_recipe_takes_exactly_the_images_and_groups_them_by_patient(tmp_path, source):
    tree = make_tree(source.name, tmp_path)
    groups = found(tmp_path, [recipe(source.name)])[source.name]
    assert set(groups) == set(tree.taken)
    assert is_one_to_one((tree.taken[path], groups[path]) for path in groups)


def test_below_one_folder_each_recipe_takes_its_own_images_and_shared_patients_are_one(downloads):
    root, trees = downloads
    groups = found(root, recipes())
    assert {name: set(paths) for name, paths in groups.items()} == {
        name: {f"{download(name)}/{path}" for path in tree.taken} for name, tree in trees.items()
    }
    patients = [
        (f"{download(name)}: {patient}", groups[name][f"{download(name)}/{path}"])
        for name, tree in trees.items()
        for path, patient in tree.taken.items()
    ]
    assert is_one_to_one(patients)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("Endoscapes-CVS", "endoscapes"), ("BBBC041v1", "malaria/malaria"), ("PSI-AVA", "PSI-AVA/keyframes")],
)
def test_the_folder_that_a_layout_begins_with_may_be_the_root(tmp_path, name, folder):
    tree = make_tree(name, tmp_path)
    whole = found(tmp_path, [recipe(name)])[name]
    part = found(tmp_path / folder, [recipe(name)])[name]
    assert {f"{folder}/{path}": group for path, group in part.items()} == whole
    assert set(whole) == set(tree.taken)


def test_groups_of_mvu_need_no_key(tmp_path):
    make_tree("ACDC", tmp_path)
    [source] = sources_by(tmp_path, walk(tmp_path).files, [recipe("ACDC")])
    path = source.files[0].path
    one, other = (Grouping(source.recipe, key).place(path, None) for key in (b"a" * 32, b"b" * 32))
    assert one == other


def test_every_recipe_says_where_its_source_is_to_be_had_how_it_lies_and_under_which_terms():
    for one in recipes():
        assert one.public
        assert all((one.home, one.layout, one.terms, one.take, one.anatomy, one.normalization)), one.name


def test_modality_anatomy_and_normalization_stand_in_one_place():
    files = list((resources.files("dexcore.data.sources") / "recipes").iterdir())
    keys = {file.name: set(yaml.safe_load(file.read_text(encoding="utf-8"))) for file in files}
    assert len(keys) == len(SOURCES)
    assert not {name for name, found in keys.items() if found & {"modality", "anatomy", "normalization"}}
    assert {one.name for one in recipes()} == {source.name for source in SOURCES}


@pytest.mark.parametrize("name", ["ISIC 2024", "isic-2024", "Isic 2024"])
def test_a_source_is_found_by_its_name_in_any_case_with_spaces_or_hyphens(name):
    assert recipe(name).name == "ISIC 2024"


def test_an_unknown_source_is_refused_with_those_nearest_to_it():
    with pytest.raises(RecipeError, match=r"'topbrain' is no source .* TopBrain-CT or TopBrain-MR\?"):
        recipe("topbrain")
    with pytest.raises(RecipeError, match=r"did you mean MURA\?"):
        recipe("MURRA")


def test_two_sources_that_take_one_file_are_refused_with_both_names(tmp_path):
    make_tree("UBPD", tmp_path)
    (tmp_path / "other.yaml").write_text("modality: Ultrasound\ntake: '**/images/7_*.jpg'\n")
    with pytest.raises(RecipeError, match=r"7_1\.jpg belongs to two sources, UBPD and other"):
        build_store(tmp_path, tmp_path / "store", sources=["UBPD", str(tmp_path / "other.yaml")])


def test_sources_lists_all_with_what_is_known_of_their_layouts(capsys):
    assert main(["mvu", "sources"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert len(lines) == len(SOURCES)
    assert {line[:36].strip() for line in lines if "partly known" in line} == PARTLY_KNOWN


def test_the_docs_list_the_sources_as_the_package_does():
    page = (Path(__file__).parents[3] / "docs" / "mvu_sources.md").read_text(encoding="utf-8")
    rows = [
        f"| {source.name} | {source.modality} | {source.images:,} | {layout_word(one.confirmed)} | {one.home} | "
        f"{one.terms} |"
        for source, one in zip(SOURCES, recipes(), strict=True)
    ]
    assert page.split("|---|---|---|---|---|---|\n")[1].splitlines() == rows


def test_sources_counts_what_lies_below_a_folder(capsys, downloads):
    root, trees = downloads
    assert main(["mvu", "sources", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    counts = {line[:36].strip(): line.split()[-1] for line in lines[1 : len(SOURCES) + 1]}
    # By names alone: that it is ultrasound, a segmentation, or not listed in the CSV file, only a build sees.
    seen_inside = {"Prostate-MRI-US-Biopsy": 2, "Duke-Breast-Cancer-MRI": 1, "Mammo-Bench": 1}
    assert counts == {name: str(len(tree.taken) + seen_inside.get(name, 0)) for name, tree in trees.items()}
    assert f"44 of 44 sources lie below {root}" in lines
    assert f"dexcore mvu build {root} --source all --out store" in lines
    assert any("archives, as EyePACS/test.zip.001: unpack them" in line for line in lines)


def test_sources_shows_one_as_a_dataset_yaml_that_takes_the_same_images(tmp_path, capsys):
    tree = make_tree("BUSI", tmp_path)
    assert main(["mvu", "sources", "busi", "--root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"Below {tmp_path}: 6 files, as Dataset_BUSI_with_GT/benign/benign (1).png" in text
    own = tmp_path / "dataset.yaml"
    own.write_text(text)
    manifest = build_store(tmp_path, tmp_path / "store", executor=ThreadPoolExecutor(1))
    assert manifest.images == tree.images
    assert manifest.counts == {"Ultrasound": {"BUSI": manifest.counts["Ultrasound"]["BUSI"]}}


def test_sources_says_that_nothing_was_found(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("")
    assert main(["mvu", "sources", "ACDC", "--root", str(tmp_path)]) == 0
    assert "none of its files" in capsys.readouterr().out
    assert main(["mvu", "build", str(tmp_path), "--source", "ACDC", "--out", str(tmp_path / "store")]) == 2
    assert "holds no file of ACDC" in capsys.readouterr().err


def test_sources_may_stand_in_the_place_of_a_folder(tmp_path):
    make_tree("BUSI", tmp_path / "downloads")
    executor = ThreadPoolExecutor(1)
    manifest = build_store(["BUSI"], tmp_path / "store", root=tmp_path / "downloads", executor=executor)
    assert set(manifest.sources) == {"BUSI"}
    with pytest.raises(TypeError, match="root must be the folder with the downloads of these sources"):
        build_store(["BUSI"], tmp_path / "store")
    with pytest.raises(ValueError, match="root is for sources in the place of a folder"):
        build_store(tmp_path / "downloads", tmp_path / "store", root=tmp_path)


def test_names_of_people_in_file_names_do_not_enter_a_store(tmp_path):
    tree = make_tree("vzrad2", tmp_path / "downloads")
    tree.text(f"train/Doe-Jane-broken_jpg.rf.{'4e' * 16}.jpg", b"\xff\xd8\xff")
    manifest = build_store(
        tmp_path / "downloads", tmp_path / "store", sources=["vzrad2"], executor=ThreadPoolExecutor(1)
    )
    assert manifest.images == tree.images
    for path in (tmp_path / "store").rglob("*"):
        assert path.is_dir() or b"Doe-Jane" not in path.read_bytes()


def test_a_stack_in_one_file_is_read_by_its_clips(tmp_path):
    tree = make_tree("Thyroid Ultrasound Cine-clip", tmp_path / "downloads")
    build_store(
        tmp_path / "downloads",
        tmp_path / "store",
        sources=["Thyroid Ultrasound Cine-clip"],
        executor=ThreadPoolExecutor(1),
    )
    rows = rows_of(tmp_path / "store")
    names = [path.rpartition("#")[2] for path, _ in rows]
    assert names == ["0", "10", "20", "30", "40"][: tree.images]
    groups = [group for _, group in rows]
    # Frames 0 and 10 are of the first patient; 20 and 30 of two nodules of the second; 40 of the third.
    assert [groups.index(group) for group in groups] == [0, 0, 2, 2, 4]


def rows_of(store):
    """(path, group) of all rows, in order."""
    opened = Store(store)
    rows = [opened.row(index) for index in range(len(opened))]
    return [(row["path"], row["group"]) for row in rows]


@pytest.mark.slow
def test_all_44_become_one_store_and_one_is_removed_without_the_others(tmp_path, downloads):
    root, trees = downloads
    store = tmp_path / "store"
    assert main(["mvu", "build", str(root), "--source", "all", "--out", str(store)]) == 0
    manifest = Manifest.load(store)
    assert {name: part.images for name, part in manifest.sources.items()} == {
        name: tree.images for name, tree in trees.items()
    }
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.iterdir() if path.is_file()}
    assert main(["mvu", "build", "--remove", "ACDC", "--out", str(store)]) == 0
    after = Manifest.load(store)
    assert after.sources == {name: part for name, part in manifest.sources.items() if name != "ACDC"}
    for shard in after.shards:
        path = store / shard.name
        assert (path.stat().st_mtime_ns, path.read_bytes()) == before[path.name]
    assert not [shard for shard in manifest.sources["ACDC"].shards if (store / shard.name).exists()]
    # Adding it again touches no other source either.
    assert main(["mvu", "build", "--root", str(root), "--source", "ACDC", "--out", str(store)]) == 0
    assert Manifest.load(store) == manifest
