"""What is settled before anything of an experiment is trained."""

import json

import numpy as np
import pytest

from dexcore.data import SyntheticMVU, open_mvu
from dexcore.data.modality import Modality
from dexcore.data.store import write_store
from dexcore.data.store.manifest import StoreError
from dexcore.evaluate.claims import Asked
from dexcore.evaluate.claims.before import ExperimentError, check_images, check_tasks, settle, write_once
from dexcore.evaluate.tasks import Task
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.report.claims import Claim, Shown

TWO = (Modality.PET, Modality.OCT)


def asked(margin=0.05):
    return [Asked(Claim("c", "A claim", "Said.", "Somebody", "A number.", "Nothing.", margin), "dex", "score")]


def test_what_could_be_shown_is_written_once_and_never_over(tmp_path):
    path = tmp_path / "smallest_effects.json"
    first = write_once(tmp_path, {"c": Shown(0.125, 0.875)}, asked(), begun="")
    text = path.read_text()
    assert json.loads(text)["claims"]["c"] == {"smallest": 0.125, "power_at_margin": 0.875, "margin": 0.05}
    again = write_once(tmp_path, {"c": Shown(0.125, 0.875)}, asked(), begun="2100-01-01T00:00:00+00:00")
    assert again == first
    assert first.flags == ()
    for shown, claims in ((Shown(0.25, 0.5), asked()), (Shown(0.125, 0.875), asked(0.1)), (Shown(), asked())):
        other = write_once(tmp_path, {"c": shown}, claims, begun="")
        assert (other.shown, other.when) == (first.shown, first.when)
        assert "What was written down first stands" in other.flags[0]
        assert "A claim" in other.flags[0]
    assert path.read_text() == text


def test_what_nobody_knows_is_null_and_comes_back_as_that(tmp_path):
    found = write_once(tmp_path, {"c": Shown()}, asked(), begun="").shown["c"]
    assert np.isnan([found.smallest, found.power]).all()
    assert json.loads((tmp_path / "smallest_effects.json").read_text())["claims"]["c"]["smallest"] is None


def test_what_is_written_after_the_first_run_began_is_no_prediction(tmp_path):
    late = write_once(tmp_path, {"c": Shown(0.1, 0.9)}, asked(), begun="2026-01-01T00:00:00+00:00")
    assert "it is no prediction" in late.flags[0]


def test_a_damaged_file_of_what_was_written_is_not_written_over(tmp_path):
    path = tmp_path / "smallest_effects.json"
    for text in ("{", '{"written": "2026-01-01T00:00:00+00:00", "claims": 9}'):
        path.write_text(text)
        with pytest.raises(ExperimentError, match=r"smallest_effects\.json is damaged"):
            write_once(tmp_path, {"c": Shown(0.1, 0.9)}, asked(), begun="")
        assert path.read_text() == text


def test_a_folder_holds_one_experiment(tmp_path):
    settle(tmp_path / "out", {"scale": "whole", "images": "a"})
    settle(tmp_path / "out", {"scale": "whole", "images": "a"})
    with pytest.raises(ExperimentError, match="images: a -> b"):
        settle(tmp_path / "out", {"scale": "whole", "images": "b"})


def stored(folder, images, heldout, modalities=TWO, seed=0):
    """``images`` generated ones; number ``n`` is held out where ``heldout(n)``."""
    drawn = SyntheticMVU(modalities, size=32, seed=seed)
    records = (drawn.record(n, "heldout" if heldout(n) else "train") for n in range(images))
    write_store(records, folder, name="small")
    return folder


def test_images_that_nothing_can_be_compared_on_are_refused_before_anything_is_trained(tmp_path):
    for name, modalities, heldout in (("one", (Modality.CT,), lambda n: n % 2), ("none", TWO, lambda n: False)):
        with pytest.raises(StoreError, match="expected two modalities at least"):
            check_images(open_mvu(stored(tmp_path / name, 12, heldout, modalities)), 8)
    assert check_images(open_mvu(stored(tmp_path / "all", 24, lambda n: n % 3 == 0)), 8) == []


def test_modalities_that_take_no_part_or_have_one_case_are_told(tmp_path):
    # Both modalities are held out once; of one nothing else is there.
    drawn = SyntheticMVU((*TWO, Modality.CT), size=32)
    records = [drawn.record(n, "heldout" if n % 2 else "train") for n in range(60)]
    pet, oct_, ct = ([one for one in records if one.modality is name] for name in (*TWO, Modality.CT))
    single = [*(one for one in oct_ if one.split == "train"), next(one for one in oct_ if one.split == "heldout")]
    kept = [*pet, *single, *(one for one in ct if one.split == "train")]
    write_store(kept, tmp_path / "store", name="small")
    one, without = check_images(open_mvu(tmp_path / "store"), 8)
    assert "One held-out case of OCT:" in one
    assert without.endswith("without a part in knock-outs: CT.")


def test_test_images_that_stand_in_the_store_are_told(tmp_path):
    _, seen = synthetic_tasks(tmp_path / "seen", 100, 32, seed=0, modalities=TWO, fractions=(0.4, 0.2, 0.4))
    store = stored(tmp_path / "store", 40, lambda n: n % 3 == 0)
    (told,) = check_tasks([seen], store)
    test = [int(row.case) for row in seen.split("test")]
    among = sum(case < 40 for case in test)
    assert 0 < among < len(test)
    assert told.startswith(f"findings: {among} of {len(test)} test images stand in the store")
    assert check_tasks([seen], stored(tmp_path / "others", 30, lambda n: n % 3 == 0, seed=7)) == []


def test_a_task_that_is_not_sound_is_an_error_and_one_of_the_same_images_is_told(tmp_path):
    _, task = synthetic_tasks(tmp_path / "task", 60, 32, modalities=TWO, fractions=(0.4, 0.2, 0.4))
    store = stored(tmp_path / "store", 12, lambda n: n % 3 == 0, seed=7)
    yaml = task.spec.path
    twin = yaml.with_name("twin.yaml")
    twin.write_text(yaml.read_text().replace("name: findings", "name: twin"))
    (told,) = check_tasks([task, Task.open(twin)], store)
    assert "twin and findings share test images" in told
    (image,) = {row.image for row in task.split("test")[:1]}
    (yaml.parent / image).write_bytes(b"no image")
    with pytest.raises(ExperimentError, match=r"task findings: .*eval check"):
        check_tasks([task], store)
