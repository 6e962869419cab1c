"""The evaluation page: what stands on it, and that names stay names."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from made_evaluations import EVIL, classification, number, page, segmentation
from PIL import Image

from dexcore.report.evaluation_cases import Case, case_strips, class_color
from dexcore.report.evaluation_pictures import ModelRow, forest_picture, plain


@pytest.fixture(scope="module")
def html():
    return page().html()


def test_names_are_escaped_and_nothing_is_fetched(html):
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; $" in html
    assert set(re.findall(r'(?:src|href)="([^"#:]*:?)', html)) <= {"data:", ""}
    assert "http" not in html.replace("http-equiv", "")


def test_every_part_stands_on_the_page(html):
    parts = ("Over all tasks", "All models", "Few images a class", "Retrieval", "Class by class", "Confusion")
    parts += ("Calibration", "Worst and median cases", "Routes of mine", "Routes by task: mine", "Published averages")
    for part in parts:
        assert re.search(rf"<h[23][^>]*>{part}", html), part
    assert "ECE" in html
    assert "not comparable" in html
    assert html.index("not comparable") > html.index("Routes of mine")  # apart from our numbers
    assert "30 present<br>30 empty" in html
    assert "0.700<br>0.60 to 0.80" in html


def test_one_task_has_no_part_over_all_tasks_and_no_images_no_warning_of_them():
    task = segmentation()
    task = replace(task, details=[replace(task.details[0], cases=(), without="No pictures of cases.")])
    html = replace(page(), tasks=[task]).html()
    assert "Over all tasks" not in html
    assert "No pictures of cases." in html
    assert "This page shows images" not in html


def test_numbers_that_are_not_defined_and_single_cases_are_drawn():
    alone = replace(number(), low=np.nan, high=np.nan)
    rows = [ModelRow("one case", alone, False), ModelRow("none", replace(alone, value=np.nan), True)]
    for lower in (False, True):
        assert forest_picture(rows, "brier", "none", lower).png.startswith(b"\x89PNG")
    assert "left is better" in forest_picture(rows, "brier", "none", True).reading


def test_names_are_no_formulas_and_long_ones_are_cut():
    assert plain("a$b$") == r"a\$b\$"
    assert plain("x" * 60) == "x" * 43 + "…"
    assert "frac" in plain(EVIL)


def _pixels(tile: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/jpeg;base64,([^\"]+)", tile)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"), float) for one in found]


def test_reference_and_prediction_lie_where_their_masks_are():
    reference, predicted = np.zeros((2, 1, 40, 40), bool)
    reference[0, :20], predicted[0, 20:] = True, True
    case = Case("one", "Worst", ("dice 0.000",), np.full((40, 40), 0.5), reference, predicted)
    image, above, below = _pixels("".join(case_strips([case], ["lesion"])))
    assert np.ptp(image) < 8
    color = np.array([int(class_color(0)[at : at + 2], 16) for at in (1, 3, 5)], float)
    covered = 0.6 * 127.5 + 0.4 * color
    half = len(image) // 2
    for shown, inside, outside in ((above, slice(0, half - 8), slice(half + 8, None)),) * 1 + (
        (below, slice(half + 8, None), slice(0, half - 8)),
    ):
        assert np.abs(shown[inside][8:-8, 8:-8].mean((0, 1)) - covered).max() < 8
        assert np.abs(shown[outside].mean((0, 1)) - 127.5).max() < 4


def test_a_mask_smaller_than_a_pixel_of_the_picture_is_seen():
    mask = np.zeros((1, 1000, 1000), bool)
    mask[0, 500, 500] = True
    case = Case("one", "Worst", ("dice 0.000",), np.zeros((1000, 1000)), mask, np.zeros_like(mask))
    _, reference, predicted = _pixels("".join(case_strips([case], ["lesion"])))
    assert reference.max() > 60
    assert predicted.max() < 8


def test_details_beyond_the_first_are_folded_away(html):
    films = html[html.index('id="task-0"') : html.index('id="task-1"')]
    assert films.count("In detail: ") == 2
    assert films.index("<h3>In detail") < films.index("<summary>In detail: a-long")
    bare = replace(classification().details[0], confusion_cc=None, reliability=(), cases=())
    many = replace(classification(), details=[bare] * 7, models=(), settings=None, routes={})
    assert "Without details: " in replace(page(), tasks=[many]).html()
