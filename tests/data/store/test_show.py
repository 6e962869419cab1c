import numpy as np
import PIL.Image
import pytest
from made_records import made_records
from made_stores import overwrite

from dexcore.data.store import Store, StoreError, write_store
from dexcore.data.store.show import show


def squares(file, side):
    """The sheet's images, [rows, columns, side, side, 3]: names lie to their left, 3 pixels between them."""
    sheet = np.asarray(PIL.Image.open(file))
    rows, columns = sheet.shape[0] // (side + 3), (sheet.shape[1] - 190) // (side + 3)
    cut = sheet[:, 190:].reshape(rows, side + 3, columns, side + 3, 3)
    return cut.transpose(0, 2, 1, 3, 4)[:, :, :side, :side]


def test_every_source_has_a_row_of_its_images(folder, tmp_path):
    assert show(folder, tmp_path / "sheet.png", examples=4, side=64) == 12
    found = squares(tmp_path / "sheet.png", 64)
    assert found.shape[:2] == (3, 4)
    store = Store(folder)
    # CT comes first; its images are rows 13 to 19, and those shown are spread over them.
    for place, index in enumerate((13, 14, 16, 18)):
        shown = found[0, place, 12:52, 8:56, 0]
        assert np.abs(shown - store.image(index) / 257).max() <= 0.51
        assert (found[0, place, :12] == 255).all()
    assert np.array_equal(found[2, 0, 14:50, 10:54], store.image(0))


def test_a_large_image_is_scaled_into_its_square(folder, tmp_path):
    show(folder, tmp_path / "sheet.png", examples=1, side=32)
    square = squares(tmp_path / "sheet.png", 32)[1, 0]  # ultrasound, 32 x 64
    assert (square[:8] == 255).all()
    assert (square[9:23] < 255).all()


def test_an_image_that_does_not_decode_is_a_crossed_square(folder, tmp_path):
    store = Store(folder)
    image = bytes(store.encoded(0))
    overwrite(type(folder)(store.where(0).split(",")[0]), image, image[:-9] + bytes(9))
    assert show(folder, tmp_path / "sheet.png", examples=2, side=32) == 6
    square = squares(tmp_path / "sheet.png", 32)[2, 0]
    assert set(np.unique(square)) == {40, 200}


def test_long_names_are_cut_and_odd_ones_shown(tmp_path):
    import dataclasses

    records = [dataclasses.replace(record, source="Ä" * 300) for record in made_records(1)]
    write_store(records, tmp_path / "store", name="a")
    assert show(tmp_path / "store", tmp_path / "sheet.png", side=32) == 1
    assert (np.asarray(PIL.Image.open(tmp_path / "sheet.png"))[:, 186:190] == 255).all()


def test_a_file_that_cannot_be_written_is_named(folder, tmp_path):
    with pytest.raises(StoreError, match=r"cannot write the contact sheet: .*nowhere"):
        show(folder, tmp_path / "nowhere" / "sheet.png")
    with pytest.raises(ValueError, match="examples must be from 1 to 100, got 0"):
        show(folder, tmp_path / "sheet.png", examples=0)
