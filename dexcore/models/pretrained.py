"""Saving and loading models: a folder with ``model.safetensors``, ``config.json`` and a model card."""

import argparse
import json
import os
import pickle
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import dexcore
from dexcore.checks import check_path
from dexcore.files import write_sealed
from dexcore.models.card import CARD_FILE, model_card
from dexcore.models.description import materialize
from dexcore.models.hub import CONFIG_FILE, WEIGHTS_FILE, local_folder
from dexcore.models.inputs import described_inputs, normalization_of, preprocess, restore_inputs, set_inputs

FORMAT_VERSION = 1
_NAMES_IN_A_MESSAGE = 8
_ADVICE = re.compile(r"\s+(?:Please use|In PyTorch 2\.6)")


class ModelFileError(ValueError):
    """A model's file cannot be read or holds another model; the message names it and what was found."""


class OtherModelError(ModelFileError):
    """A folder holds a saved model of another class, whole or not.

    Attributes:
        found: what it holds, in words.
    """

    def __init__(self, message: str, found: str) -> None:
        super().__init__(message)
        self.found = found


class PretrainedMixin:
    """``save_pretrained`` and ``from_pretrained`` for a model that can describe itself."""

    def describe(self) -> dict[str, Any]:
        """``class``, and what `from_description` needs to rebuild the model without its weights, for JSON.

        Raises:
            NotDescribableError: the model holds something that cannot be written down.
        """
        raise NotImplementedError

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The model that `describe` described, with fresh weights."""
        raise NotImplementedError

    @property
    def vision_transformer(self) -> VisionTransformer:
        """The transformer that sees the images: the model itself, or an autoencoder's encoder."""
        raise NotImplementedError

    def card(self) -> str:
        """The model card: what ``README.md`` says of the model where nobody wrote one."""
        return model_card(self.vision_transformer, type(self).__name__)

    @property
    def normalization(self) -> dict[str, list[str]]:
        """Modality -> how its raw pixels came to lie in [0, 1], names of `dexcore.data.normalize`; {} if unknown."""
        return normalization_of(self.vision_transformer)

    def set_preprocessing(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        normalization: Mapping[str, Sequence[str]] | None = None,
        slices: int = 1,
    ) -> None:
        """Note how the model's images are made, for `preprocess`, for timm and for those who load it.

        They are the centre square, resized by area (`dexcore.view.evaluation_view`), their channels normalized:
        what `dexcore.train` shows its models. Written into timm's ``pretrained_cfg`` of the transformer.

        Args:
            mean: of each channel, in units of [0, 1]; one number, or one a channel.
            std: standard deviation of each channel.
            normalization: modality -> names of what brought its raw pixels to [0, 1] (`dexcore.data.normalize`).
            slices: how many neighbouring slices of a volume the channels are, that number; 1: an image's own channels.

        Raises:
            TypeError, ValueError: a value is of another kind or out of its range; the message names it.
        """
        set_inputs(self.vision_transformer, mean, std, normalization or {}, slices)

    def preprocess(self, images: Any) -> torch.Tensor:
        """What the model was shown in evaluation of these images: the centre square, resized, normalized.

        Args:
            images: an image, or several: a list of them (of any sizes), or one array of four axes. An image is gray,
                [H, W], or has 1 or 3 channels or the model's number: last in a NumPy array, [H, W, C], first in a
                tensor, [C, H, W]; or it is a PIL image. Its values are floats in [0, 1], or uint8 or uint16 as files
                and stores hold them. Raw CT or PET values are brought to [0, 1] first: ``normalization`` says how. Of
                a model of neighbouring slices (``slices`` in its config.json) they are the channels, and gray stands
                for an image of no volume.

        Returns:
            float32 [C, S, S], or [B, C, S, S] for several, on the CPU; to the bit what the run's evaluation made of
            the same array. Gray is repeated for all channels; RGB becomes gray for a model of one.

        Raises:
            ImportError: OpenCV (the extra ``train``) is missing.
            TypeError, ValueError: an image is of another type, shape or range; or the model is not square, was
                prepared for in another way or does not say how.
        """
        return preprocess(self.vision_transformer, images)

    def adapted(self, num_classes: int | None, in_chans: int | None, img_size: int | tuple[int, int] | None) -> Self:
        """The model with another classifier, other channels or another image size; see `from_pretrained`."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``model.safetensors`` (every tensor in its own dtype) and ``config.json`` into ``folder``.

        A killed save leaves the old model, the new one, or a folder without ``config.json``, which
        `from_pretrained` refuses. Where there is no ``README.md``, a short model card is written too.

        Raises:
            TypeError: ``folder`` is no path.
            NotDescribableError: the model has a part that ``config.json`` cannot say. Nothing is written.
            ValueError: the model is on the meta device.
            OSError: the folder or a file in it, which the error names, cannot be written.
        """
        assert isinstance(self, nn.Module)
        check_path("folder", folder)
        check_has_data(self)
        versions = {"format_version": FORMAT_VERSION, "dexcore_version": dexcore.__version__}
        described = self.describe() | described_inputs(self.vision_transformer)
        config = json.dumps(versions | described, indent=2) + "\n"
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / WEIGHTS_FILE: save(tensors, {"format": "pt"})}
        if not (folder / CARD_FILE).exists():  # its text may be someone's
            files[folder / CARD_FILE] = self.card().encode()
        write_sealed({**files, folder / CONFIG_FILE: config.encode()})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> Self:
        """The model that `save_pretrained` wrote, on the CPU, in evaluation mode.

        It has its numbers in memory of its own: the files may be changed or removed afterwards.
        `DEXVisionTransformer.from_pretrained` also takes a saved `MaskedAutoencoder` and returns its encoder.

        Args:
            folder: what `save_pretrained` wrote, a run's ``model``; or ``"user/name"`` on the Hugging Face Hub, where
                no folder of that name is here (``"./user/name"`` is always a folder).
            num_classes: of another classifier, drawn anew; 0 for none.
            in_chans: channels of the images; the patch embedding is adapted as timm does.
            img_size: pixels, one number or height and width; positions are resampled as timm does.
            revision: branch, tag or commit on the Hub.
            cache_dir: where files of the Hub are kept; default: huggingface_hub's.
            token: for a private model; default: the one that was logged in with.

        Raises:
            TypeError: ``folder`` is no path, or a size no whole number.
            FileNotFoundError: there is no such folder nor a model on the Hub, or one of the two files is not in it.
            ModelFileError: ``folder`` is a file; or a file in it cannot be read, is of a newer format or another
                class, or the tensors are not exactly those of the model.
            ValueError: the model cannot be given such a size; or ``revision`` with a folder that is here.
        """
        check_path("folder", folder)
        folder = local_folder(folder, revision=revision, cache_dir=cache_dir, token=token)
        config_path, weights_path = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        _check_folder(folder)
        config = _read_config(config_path)
        description = config
        tensors = read_safetensors(weights_path)
        encoder = description.get("encoder")
        if description["class"] != cls.__name__ and encoder and encoder["class"] == cls.__name__:
            description = encoder
            tensors = {
                name.removeprefix("encoder."): tensor for name, tensor in tensors.items() if name.startswith("encoder.")
            }
        if description["class"] != cls.__name__:
            within = f" around a {encoder['class']}" if encoder else ""
            found = f"{description['class']}{within}"
            raise OtherModelError(f"{config_path} describes a {found}, not a {cls.__name__}", found)
        _check_depth(description, len(tensors), config_path)
        try:
            with torch.device("meta"):
                model = cls.from_description(description)
        except Exception as error:  # timm asserts, torch raises RuntimeError
            raise ModelFileError(
                f"{config_path} does not describe a {cls.__name__}: {shorten([repr(error)])}"
            ) from error
        assert isinstance(model, nn.Module)
        load_exactly(model, tensors, str(weights_path), assign=True)
        materialize(model)
        try:
            restore_inputs(model.vision_transformer, config)
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"{config_path}: {shorten([str(error)])}") from error
        if not (num_classes is None and in_chans is None and img_size is None):
            model = model.adapted(num_classes, in_chans, img_size)
        return model.eval()


def check_has_data(model: nn.Module) -> None:
    """Raises ValueError for a model on the meta device, into which and from which nothing can be copied."""
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError("model must have memory: on the meta device it has no data (call to_empty before)")


def load_exactly(model: nn.Module, tensors: dict[str, torch.Tensor], source: str, assign: bool = False) -> None:
    """Load ``tensors``, which must be the model's own by name and shape, or leave the model untouched.

    Args:
        source: what to call them in the message.
        assign: put copies of the tensors, in their dtype, in the place of the model's own; else the numbers are
            copied into those.

    Raises:
        ModelFileError: as `check_fit` does.
    """
    check_fit(model, model.state_dict(), tensors, source)
    if assign:
        # A file's tensors are the mapped file: cut, it would end the process. They also start anywhere, and BLAS
        # rounds by the address.
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=assign)


def check_fit(
    model: nn.Module,
    own: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    source: str,
    origins: Mapping[str, str] | None = None,
) -> None:
    """Compare ``tensors`` with ``own``, the model's by name.

    Args:
        source: what to call them in the message.
        origins: what the file calls them, where it is something else.

    Raises:
        ModelFileError: names all that is missing, unexpected, of another shape or of another kind of number.
    """
    called = {name: (origins or {}).get(name, name) for name in [*own, *tensors]}
    faults = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [called[name] for name in tensors if name not in own],
        "of another shape": [
            f"{called[name]} {list(tensors[name].shape)}, expected {list(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ],
        "of another kind of number": [
            f"{called[name]} {tensors[name].dtype}, expected {own[name].dtype}"
            for name in own
            if name in tensors and tensors[name].is_floating_point() != own[name].is_floating_point()
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {shorten(names)}" for what, names in faults.items() if names)
        raise ModelFileError(f"{source} does not fit the {type(model).__name__}: {told}")


def check_file(path: Path, expected: str) -> None:
    """Raises ModelFileError for a folder and FileNotFoundError for nothing in the place of a file, ``expected``."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; expected a file: {expected}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {expected}")


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU: a map of it, so to be copied before the file may change.

    Raises:
        ModelFileError: no safetensors file, a truncated one, or one with tensors that are not `is_plain`.
    """
    try:
        tensors = load_file(path)
    except Exception as error:
        raise ModelFileError(f"{path} is no whole safetensors file: {type(error).__name__}: {error}") from error
    check_plain(tensors, str(path))
    return tensors


def read_pickle(path: Path) -> Any:
    """What a checkpoint of `torch.save` holds, on the CPU; no code of the file's is run.

    Raises:
        ModelFileError: it cannot be read with weights_only=True.
    """
    try:
        # MAE's and DINO's own files hold the command line beside the tensors.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise anything
        # Not from the error: its text tells how to run the file's code.
        raise ModelFileError(
            f"{path} cannot be read with weights_only=True: {type(error).__name__}: {_finding(error)}"
        ) from None


def _finding(error: Exception) -> str:
    """What PyTorch found in a file, without its advice to read it with weights_only=False or an allowlist."""
    wrapped = error.__context__ if isinstance(error, pickle.UnpicklingError) else None
    return shorten([_ADVICE.split(str(wrapped or error))[0]])


def check_plain(tensors: dict[str, torch.Tensor], source: str) -> None:
    """Raises ModelFileError for tensors that are not `is_plain`."""
    if odd := [name for name, tensor in tensors.items() if not is_plain(tensor)]:
        raise ModelFileError(
            f"{source}: expected dense tensors that hold each of their numbers; these do not: {shorten(odd)}"
        )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it can be copied into a parameter; not if sparse, quantized, without data, expanded, or two to a byte."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)
        and tensor.dtype is not torch.float4_e2m1fn_x2
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise ModelFileError(f"{folder} is a file; expected a folder that save_pretrained wrote")
    within = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}") if (path.parent / WEIGHTS_FILE).is_file())
    if within and not (folder / CONFIG_FILE).exists():
        raise FileNotFoundError(f"{folder} is not a model's folder but holds one: pass {within[0]}")
    for path, what in ((folder, "folder"), (folder / CONFIG_FILE, "file"), (folder / WEIGHTS_FILE, "file")):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such {what}; expected a folder that save_pretrained wrote")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is no config.json of dexcore: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if isinstance(config, dict) and version is None and "architecture" in config:
        raise ModelFileError(
            f"{path} was written by timm, not by save_pretrained: open it with "
            f'timm.create_model("local-dir:{path.parent}", pretrained=True)'
        )
    if type(version) is not int or version < 1:  # True is an int
        raise ModelFileError(f'{path} is no config.json of dexcore: expected an object with a number "format_version"')
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {version}, dexcore {dexcore.__version__} reads up to {FORMAT_VERSION}"
        )
    for described in (config, config.get("encoder", config)):
        if not isinstance(described, dict) or not isinstance(described.get("class"), str):
            found = reprlib.repr(described)
            raise ModelFileError(
                f'{path} is no config.json of dexcore: expected an object with a name "class", got {found}'
            )
    return config


def _check_depth(description: dict[str, Any], tensors: int, path: Path) -> None:
    """Blocks are modules, which cost time and memory even without weights: no more of them than the file can fill."""
    for described in (description, description.get("encoder")):
        arguments = described.get("arguments") if isinstance(described, dict) else None
        for name in ("depth", "decoder_depth"):
            depth = arguments.get(name) if isinstance(arguments, dict) else None
            if isinstance(depth, int | float) and depth > tensors:
                raise ModelFileError(
                    f"{path}: {name} {reprlib.repr(depth)} is more than the {tensors} tensors beside it"
                )


def shorten(names: list[str]) -> str:
    """The first of them, none too long: a file may name anything."""
    more = len(names) - _NAMES_IN_A_MESSAGE
    told = [name if len(name) < 250 else f"{name[:120]}...{name[-120:]}" for name in names[:_NAMES_IN_A_MESSAGE]]
    return ", ".join(told) + (f" and {more} more" if more > 0 else "")
