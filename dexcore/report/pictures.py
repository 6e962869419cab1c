"""What a picture of the report is, and the look that all of them share.

Backgrounds are transparent and text is a gray that reads on white and on black, so one PNG serves light and
dark pages. All are drawn to the width of a phone's column: 4.8 inches across, text of 10 points and more.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.extras import require

WIDTH = 4.8  # inches
NEUTRAL = "#7f7f7f"
BLUE = "#3a86c8"
RED = "#d9483b"
_DPI = 230

# Ten that keep apart on white and on black.
_MODALITIES = (
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#ff8fa3", "#2fb5c4", "#d4b106", "#7a5cff",
)  # fmt: skip

STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.grid": False,
    "grid.color": NEUTRAL,
    "grid.alpha": 0.25,
    "text.color": NEUTRAL,
    "axes.labelcolor": NEUTRAL,
    "axes.titlecolor": NEUTRAL,
    "axes.edgecolor": NEUTRAL,
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
    "legend.frameon": False,
    "legend.labelcolor": NEUTRAL,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture and the words that go with it.

    Attributes:
        name: file name without folder, ending in .png.
        title: heading.
        reading: how to read it, in a sentence.
        bad: what would be a bad sign.
        png: the file's content.
        found: what it shows of this run, in numbers; "" where the picture says it all.
        detail: what else a careful reader must know; the page folds it away.
    """

    name: str
    title: str
    reading: str
    bad: str
    png: bytes
    found: str = ""
    detail: str = ""


def new_figure(height: float, layout: str | None = "constrained") -> Any:
    """An empty matplotlib Figure of `WIDTH` x ``height`` inches, apart from pyplot's global state."""
    return require("matplotlib.figure", "train").Figure(figsize=(WIDTH, height), layout=layout)


def styled() -> Any:
    """The context in which pictures are drawn."""
    return require("matplotlib", "train").rc_context(STYLE)


def to_png(figure: Any) -> bytes:
    """Render ``figure`` with Agg."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def modality_color(index: int) -> str:
    """The color of the modality of that index, the same in every picture."""
    return _MODALITIES[index % len(_MODALITIES)]


def spread(values: np.ndarray, most: int) -> list[int]:
    """Every nth of ``values``, at most ``most`` of them, for ticks."""
    return [int(value) for value in values[:: math.ceil(len(values) / most)]]
