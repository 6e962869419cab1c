"""What a model is shown of an image, as the model declares it."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from timm.data import resolve_model_data_config

from dexcore.checks import check_number, check_whole
from dexcore.evaluate.embedding.table import FeaturesError
from dexcore.extras import require
from dexcore.models.inputs import knows_view, per_channel
from dexcore.ops.checks import check_choice
from dexcore.view import LARGEST, MAX_SIZE, Box, as_pixels, center_square, resample, to_tensor

VERSION = 1  # of what this file makes of an image: another one is another feature
AREA = "area"
FILTERS = (AREA, "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CROPS = ("center", "whole")


@dataclass(frozen=True)
class Preprocessing:
    """From an image in [0, 1] to the network's input.

    Attributes:
        size: height and width of the input, pixels.
        mean, std: of each channel, in units of [0, 1]; their number is that of the channels.
        interpolation: "area" as dexcore's runs (`dexcore.view`), or a filter of Pillow's. All average what they shrink
            (antialias) but "nearest".
        crop: "center", the middle of the image; or "whole": all of it, squeezed into ``size``.
        crop_pct: share of the resized image's shorter side that is cropped.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = AREA
    crop: str = "center"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        for side in self.size:
            check_whole("size", side, 1, MAX_SIZE)
        check_choice("interpolation", self.interpolation, FILTERS)
        check_choice("crop", self.crop, CROPS)
        check_number("crop_pct", self.crop_pct, "above 0, up to 1", lambda x: 0 < x <= 1)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have one number a channel, got {self.mean} and {self.std}")
        if self.interpolation == AREA and (self.crop_pct != 1 or (self.crop == "center" and len(set(self.size)) > 1)):
            raise ValueError(f"area makes whole squares, got crop_pct {self.crop_pct} and size {self.size}")

    def described(self) -> dict[str, Any]:
        """All that decides what is made of an image, for JSON."""
        return {"version": VERSION, **asdict(self), "antialias": self.interpolation != "nearest"}

    def __call__(self, image: Any) -> torch.Tensor:
        """float32 [C, height, width] of an image as `dexcore.view.as_pixels` takes it: 8 or 16 bits, or [0, 1].

        Raises:
            TypeError, ValueError: it is none, or lies outside [0, 1].
        """
        pixels = as_pixels(image, len(self.mean))
        made = self._by_area(pixels) if self.interpolation == AREA else self._by_filter(pixels)
        return to_tensor(made, self.mean, self.std)

    def _by_area(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if self.crop == "center":
            return resample(pixels, center_square(height, width), self.size[0])
        if len(set(self.size)) == 1:
            return resample(pixels, Box(0, 0, height, width), self.size[0])
        raise ValueError(f"area makes squares, got size {self.size}")

    def _by_filter(self, pixels: np.ndarray) -> np.ndarray:
        """As timm's evaluation transform, but in float32, so that images of any depth lose nothing."""
        height, width = self.size
        resized, cut = (height, width), (0, 0)
        if self.crop == "center":
            rows, columns = pixels.shape[:2]
            wanted = (math.floor(height / self.crop_pct), math.floor(width / self.crop_pct))
            scale = max(wanted[0] / rows, wanted[1] / columns)
            resized = (max(int(rows * scale + 1e-6), height), max(int(columns * scale + 1e-6), width))
            cut = (round((resized[0] - height) / 2), round((resized[1] - width) / 2))
        scaled = pixels.astype(np.float32) / np.float32(LARGEST[pixels.dtype])
        image = require("PIL.Image", "train")
        sampling = image.Resampling[self.interpolation.upper()]
        planes = np.moveaxis(scaled, 2, 0) if scaled.ndim == 3 else scaled[None]
        made = [
            np.asarray(image.fromarray(np.ascontiguousarray(plane)).resize(resized[::-1], sampling)) for plane in planes
        ]
        made = [plane[cut[0] : cut[0] + height, cut[1] : cut[1] + width].clip(0, 1) for plane in made]
        return np.stack(made, axis=2) if scaled.ndim == 3 else made[0]


def declared_preprocessing(model: Any, crop: str = "center") -> Preprocessing:
    """What the model says of its images, in timm's ``pretrained_cfg``; of dexcore's runs the runs' own view.

    Raises:
        FeaturesError: it says nothing, or what is not made here.
    """
    said = getattr(model, "pretrained_cfg", None)
    if not said:
        raise FeaturesError(
            f"{type(model).__name__} does not say how its images are made: expected preprocessing=Preprocessing(...), "
            "or a model with timm's pretrained_cfg (dexcore's models: set_preprocessing)"
        )
    config = resolve_model_data_config(model)
    channels, *size = config["input_size"]
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or size
    channels = getattr(model, "in_chans", channels)
    mean, std = (per_channel(config[name], channels) for name in ("mean", "std"))
    if isinstance(said, dict) and knows_view(model):
        return Preprocessing((size[0], size[1]), mean, std, AREA, crop)
    if config.get("crop_mode", "center") not in ("center", "squash"):
        raise FeaturesError(
            f"{type(model).__name__} declares crop_mode {config['crop_mode']!r}: expected center or squash"
        )
    crop = "whole" if config.get("crop_mode") == "squash" else crop
    pct = 1.0 if crop == "whole" else float(config["crop_pct"])
    return Preprocessing((size[0], size[1]), mean, std, config["interpolation"], crop, pct)
