"""Numbers of an evaluation, made up, with names that try to break out of the page."""

from dataclasses import replace

import numpy as np

from dexcore.measures.bootstrap import Estimate
from dexcore.report.evaluation_cases import Case
from dexcore.report.evaluation_page import AcrossPart, AcrossRow, Detail, EvaluationPage, SettingNumbers, TaskPart
from dexcore.report.evaluation_pictures import ModelRow

EVIL = "<script>alert('x')</script> & $\\frac{1}{2}$"
LONG = "a-long-name-of-a-model-without-any-place-to-break-it-and-so-on-and-on-and-on"


def number(value: float = 0.7, width: float = 0.1) -> Estimate:
    return Estimate(value, value - width, value + width, width / 2, 0, 60)


def classification(name: str = "films") -> TaskPart:
    classes = (EVIL, "a class with words", LONG)
    cases = [
        Case(f"case {n}", "Worst: the lowest", (f"label: {EVIL}", f"predicted: {LONG} 0.91"), np.full((20, 30), 0.5))
        for n in range(3)
    ]
    detail = Detail(
        model=f"{LONG} linear",
        about=f"in {LONG}/{LONG}",
        numbers={"auroc": number(), "ece": number(0.1, 0.05), "brier": Estimate(np.nan, np.nan, np.nan, np.nan, 0, 60)},
        per_class={one: {"auroc": number(), "average_precision": number(), "recall": number()} for one in classes},
        counts={one: {"items": 20} for one in classes},
        confusion_cc=np.array([[18, 1, 1], [3, 17, 0], [0, 0, 0]]),
        reliability=[(20, 0.4, 0.3), (40, 0.9, 0.8)],
        cases=cases,
        masks=(),
        without="",
        made={"command": f"dexcore eval probe {LONG}", "task": "0" * 64, "versions": EVIL},
    )
    courses = {"logistic": {"histogram": {1: number(), 4: number(0.8)}, LONG: {1: number(0.5), 4: number(0.6)}}}
    rows = [
        ModelRow(f"{LONG} linear", number(), False, "+", 1.0),
        ModelRow(f"{EVIL} knn", number(0.6), False, "", 2.0),
        ModelRow("histogram linear", number(0.55), True, "", 3.0),
        ModelRow("majority", Estimate(np.nan, np.nan, np.nan, np.nan, 0, 60), True),
    ]
    return TaskPart(
        name=name,
        kind="classification",
        metric="auroc",
        lower_is_better=False,
        against="histogram linear",
        about=f"classification, {EVIL}",
        models=rows,
        details=[detail, replace(detail, confusion_cc=None, reliability=())],
        routes={"mine": (np.eye(4, 8), 60)},
        settings=SettingNumbers(courses, "balanced_accuracy", {"histogram": number(), LONG: number()}, 0.3, "mean"),
        flags=[f"does not beat {EVIL}: {LONG}"],
        flags_in_full=[EVIL],
    )


def segmentation(name: str = "lesions") -> TaskPart:
    yes = np.zeros((2, 24, 40), bool)
    yes[0, 4:12, 5:30] = yes[1, 15:20, 5:9] = True
    rules = ("dice", "iou", "dice_present", "dice_kaggle", "false_alarm")
    detail = Detail(
        model="unet",
        about="in out",
        numbers={rule: number() for rule in rules},
        per_class={one: {rule: number() for rule in rules} for one in (EVIL, "core")},
        counts={one: {"present": 30, "empty": 30, "predicted": 31} for one in (EVIL, "core")},
        confusion_cc=None,
        reliability=(),
        cases=[Case("one", "Median dice", ("dice 0.712", LONG), np.full((24, 40, 3), 0.5), yes, yes[:, ::-1])],
        masks=(EVIL, "core"),
        without="",
        made={},
    )
    return TaskPart(
        name=name,
        kind="segmentation",
        metric="dice",
        lower_is_better=False,
        against="histogram linear",
        about="segmentation",
        models=[ModelRow("unet", number(), False, "", 1.0)],
        details=[detail],
        routes={"mine": (np.eye(4, 8)[::-1], 60)},
        settings=None,
        flags=(),
        flags_in_full=(),
    )


def page() -> EvaluationPage:
    rows = [AcrossRow(name, number(), number(0.7, 0.2), 1.5, (1, 0, 1)) for name in (f"{LONG} linear", EVIL)]
    return EvaluationPage(
        title="Evaluation",
        across=[AcrossPart("All tasks", EVIL, rows, ["the mean mixes auroc and dice"])],
        tasks=[classification(), segmentation()],
        published="DEX as published: other splits, other code; not comparable",
        made={"command": "dexcore eval page", "versions": "dexcore 0"},
    )
