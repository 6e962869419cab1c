import dataclasses

import pytest
from made_records import made_records

from dexcore.data.modality import SOURCES, Modality
from dexcore.data.store import Store, StoreError, write_store
from dexcore.data.store.stats import SourceStats, stats_table, store_stats


def test_images_are_counted_by_modality_and_source(folder):
    store = Store(folder)
    sizes = [len(store.encoded(index)) for index in range(20)]
    assert store_stats(folder) == [
        SourceStats(Modality.CT, "Scanner", 7, 1, 0, 7, 40, 48, 16, sum(sizes[13:]), None),
        SourceStats(Modality.ULTRASOUND, "Probe", 6, 1, 6, 6, 32, 64, 8, sum(sizes[7:13]), None),
        SourceStats(Modality.FUNDUS, "Camera", 7, 2, 0, 7, 36, 44, 8, sum(sizes[:7]), None),
    ]


def test_the_papers_counts_stand_beside_its_sources(tmp_path):
    known = SOURCES[0]
    records = [dataclasses.replace(record, source=known.name) for record in made_records(2)]
    write_store(records, tmp_path / "store", name="a")
    ours, other = store_stats(tmp_path / "store")
    assert (ours.modality, ours.paper) == (known.modality, known.images)
    assert other.paper is None  # the same name in a modality that it does not have in the paper


def test_the_table_says_what_was_counted(folder):
    stats = store_stats(folder)
    lines = stats_table([*stats, dataclasses.replace(stats[0], source="Tube", images=1200, paper=5000)]).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0][:3] == ["modality", "source", "images"]
    assert cells[1][:6] == ["CT", "Scanner", "7", "-", "1", "7"]
    assert cells[2][:6] == ["CT", "Tube", "1,200", "5,000", "1", "7"]
    assert cells[3][:6] == ["CT", "all", "1,207", "5,000", "2", "14"]
    assert cells[-1][:5] == ["all", "1,220", "5,000", "5", "27"]
    assert len({line.index("40 x 48") for line in lines if "40 x 48" in line}) == 1


def test_what_is_no_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="no such folder, expected a store"):
        store_stats(tmp_path / "nowhere")
