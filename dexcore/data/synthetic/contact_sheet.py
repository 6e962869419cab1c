"""A picture of SyntheticMVU, a row a modality and a column a label.

python -m dexcore.data.synthetic.contact_sheet FILE
"""

import argparse
from pathlib import Path

import numpy as np

from dexcore.data.modality import Modality
from dexcore.data.synthetic import SyntheticMVU, SyntheticSample
from dexcore.extras import require

_SIZE = 112  # pixels a side of an image
_NAME, _HEADER, _GAP = 92, 22, 3  # pixels: width of the modality's name, height of the label's, between images
_INK, _PAPER = 40, 255


def contact_sheet(size: int = _SIZE, seed: int = 0) -> np.ndarray:
    """One image of each modality and label, and the mask of the last label's.

    Args:
        size: side of the images, pixels.
        seed: of `SyntheticMVU`.

    Returns:
        uint8 [height, width, 3] (RGB).
    """
    from_pil = require("PIL.Image", "train").fromarray
    draw = require("PIL.ImageDraw", "train").Draw
    font = require("PIL.ImageFont", "train").load_default(13)
    step = size + _GAP
    columns = [*SyntheticMVU.labels, "its mask"]
    sheet = np.full((_HEADER + step * len(Modality), _NAME + step * len(columns), 3), _PAPER, np.uint8)
    for row, modality in enumerate(Modality):
        samples = _one_of_each_label(modality, size, seed)
        for column, image in enumerate([*(sample.image for sample in samples), samples[-1].mask]):
            top, left = _HEADER + row * step, _NAME + column * step
            pixels = (np.asarray(image, np.float32) * 255 + 0.5).astype(np.uint8)
            sheet[top : top + size, left : left + size] = pixels if pixels.ndim == 3 else pixels[..., None]
    picture = from_pil(sheet)
    pen = draw(picture)
    for column, label in enumerate(columns):
        pen.text((_NAME + column * step + size // 2, _HEADER // 2), label, (_INK,) * 3, font, anchor="mm")
    for row, modality in enumerate(Modality):
        pen.text((6, _HEADER + row * step + size // 2), modality, (_INK,) * 3, font, anchor="lm")
    return np.asarray(picture)


def _one_of_each_label(modality: Modality, size: int, seed: int) -> list[SyntheticSample]:
    source = SyntheticMVU([modality], size=size, seed=seed)
    found: dict[int, SyntheticSample] = {}
    index = 0
    while len(found) < len(SyntheticMVU.labels):
        sample = source.sample(index)
        found.setdefault(sample.label, sample)
        index += 1
    return [found[label] for label in sorted(found)]


def main() -> None:
    """Write the sheet to the file named on the command line; its ending chooses the format."""
    parser = argparse.ArgumentParser(description="Write a contact sheet of SyntheticMVU.")
    parser.add_argument("file", type=Path, help="the picture to write, for example synthetic_mvu.jpg")
    require("PIL.Image", "train").fromarray(contact_sheet()).save(parser.parse_args().file, quality=82)


if __name__ == "__main__":
    main()
