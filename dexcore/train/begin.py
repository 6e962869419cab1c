"""The weights that a run begins with: of a dense checkpoint, or of a model of dexcore's."""

from pathlib import Path

from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, load_dense_checkpoint
from dexcore.models.hub import WEIGHTS_FILE, model_folder
from dexcore.models.objective import Objective
from dexcore.models.pretrained import OtherModelError, load_exactly


def weights_file(init: str) -> Path:
    """The file that ``model.init`` names, itself or as the folder of a model or of a run."""
    return model_folder(init) / WEIGHTS_FILE if Path(init).is_dir() else Path(init)


def begin_with(model: Objective, init: str) -> None:
    """Load a dense checkpoint into every expert and director, or a saved model as it is, experts and routers too.

    A saved model of another objective, or a fine-tuned one, gives its encoder alone. Positions are resampled where the
    images are of another size.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no model.
        ModelFileError: it cannot be read, or does not fit; the message names what differs.
    """
    if not Path(init).is_dir():
        load_dense_checkpoint(model if isinstance(model, MaskedAutoencoder) else model.encoder, init)
        return
    folder = model_folder(init)
    try:
        saved: Objective | DEXVisionTransformer = type(model).from_pretrained(folder)
    except OtherModelError:
        saved = DEXVisionTransformer.from_pretrained(folder, num_classes=0)
    size = model.encoder.patch_embed.img_size
    if tuple(saved.vision_transformer.patch_embed.img_size) != tuple(size):
        saved = saved.adapted(None, None, size)
    into = model if isinstance(saved, Objective) else model.encoder
    load_exactly(into, saved.state_dict(), str(folder))
