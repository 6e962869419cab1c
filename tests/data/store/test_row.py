import dataclasses

import numpy as np
import pytest
from made_records import made_records

from dexcore.data.store import Store, encode_row, write_store


def test_large_images_are_scaled_down(tmp_path):
    [record] = made_records(1)
    large = dataclasses.replace(record, image=np.full((900, 700), 0.25, np.float32))
    write_store([large], tmp_path / "store", name="large", max_side=350)
    pixels = Store(tmp_path / "store").image(0)
    assert pixels.shape == (450, 350)
    assert (pixels == round(0.25 * 65535)).all()


def test_color_is_stored_at_8_bit_whatever_its_normalization(tmp_path):
    _, record = made_records(2)
    color = dataclasses.replace(record, normalization="percentile_minmax")
    write_store([color], tmp_path / "store", name="color")
    assert Store(tmp_path / "store").image(0).dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": np.zeros((4, 4))}, r"float64 \[4, 4\], expected float32"),
        ({"image": np.zeros((4, 4, 2), np.float32)}, r"float32 \[4, 4, 2\], expected"),
        ({"image": np.full((4, 4), 1.5, np.float32)}, r"outside \[0, 1\]"),
        ({"image": np.full((4, 4), np.nan, np.float32)}, "not finite"),
        ({"image": np.zeros((0, 4), np.float32)}, "empty"),
        ({"modality": "X-Ray"}, "modality is 'X-Ray', expected one of CT, PET"),
        ({"split": "test"}, "split is 'test', expected one of"),
        ({"image": [[0.5]]}, "image is a list, expected a numpy array"),
        ({"group": None}, "group is None, expected a text"),
        ({"source": "caf\udce9"}, "source is .*, which UTF-8 cannot hold"),
        ({"normalization": "div256"}, "normalization is 'div256', expected one of hu_window"),
        ({"spacing": 0.0}, "spacing is 0.0, expected mm between pixels, or None"),
        ({"spacing": float("nan")}, "spacing is nan, expected mm"),
        ({"burned_in": "YES"}, "burned_in is 'YES', expected True, False or None"),
        ({"synthetic": None}, "synthetic is None, expected True or False"),
    ],
)
def test_a_record_that_is_not_as_promised_is_named(tmp_path, change, problem):
    [record] = made_records(1)
    with pytest.raises(ValueError, match=f"somewhere/0.dcm': .*{problem}"):
        write_store([dataclasses.replace(record, **change)], tmp_path, name="x")
    assert list(tmp_path.iterdir()) == []


def test_spacing_grows_as_an_image_is_scaled_down(tmp_path):
    [record] = made_records(1)
    large = dataclasses.replace(record, image=np.full((900, 700), 0.25, np.float32), spacing=0.5, burned_in=True)
    assert encode_row(large, 350)["spacing"] == pytest.approx(1.0)
    assert encode_row(large, 700)["spacing"] == 0.5
    write_store([large, record], tmp_path / "store", name="a", max_side=350)
    rows = [Store(tmp_path / "store").row(index) for index in range(2)]
    assert [row["spacing"] for row in rows] == [pytest.approx(1.0), None]
    assert [row["burned_in"] for row in rows] == [True, None]
