"""A model whose routing is known: an image's upper stripes say its modality, the lower ones a tag that nobody asks for.

The router reads the one or the other. Experts write where nothing else writes, and the decoder reads that alone, fitted
so that it reconstructs every image from what its own experts wrote.
"""

from pathlib import Path

import numpy as np
import torch

from dexcore.data.feed.dataset import open_mvu
from dexcore.data.modality import Modality
from dexcore.data.record import ImageRecord
from dexcore.data.store import write_store
from dexcore.evaluate.modules import setting_of
from dexcore.evaluate.reconstruct import batches
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder

MODALITIES = (Modality.PET, Modality.OCT, Modality.PHOTO)
EXPERTS, PATCH, SIZE = 4, 8, 32
_WRITTEN = slice(8, 16)  # the width that only experts write


def write_stripes(folder: Path, cases: int = 36, slices: int = 2, seed: int = 0):
    """A store: ``cases`` volumes in turn of three modalities, a tag each, every third held out."""
    random, records = np.random.default_rng(seed), []
    for case in range(cases):
        modality, tag = case % 3, int(random.integers(3))
        for number in range(slices):
            image = np.zeros((SIZE, SIZE, 3), np.float32)
            upper = (np.arange(SIZE) % PATCH < PATCH // 2)[:, None, None]
            image += np.where(upper, np.eye(3)[modality], np.eye(3)[tag])
            image = (0.1 + 0.8 * image + random.normal(0, 0.02, image.shape)).clip(0, 1).astype(np.float32)
            records.append(
                ImageRecord(
                    image=image,
                    modality=MODALITIES[modality],
                    source="stripes",
                    anatomy="none",
                    normalization="div255",
                    group=f"volume {case}",
                    path=f"{case}#{number}",
                    synthetic=True,
                    split="heldout" if case // 3 % 3 == 2 else "train",
                )
            )
    write_store(records, folder, name="stripes")
    return open_mvu(folder)


@torch.no_grad()
def planted(images, reads: str = "modality", same: bool = False, seed: int = 0) -> MaskedAutoencoder:
    """The model: its router ``reads`` "modality" or "tag"; ``same`` experts are copies of one."""
    torch.manual_seed(seed)
    encoder = DEXVisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        pool="mean",
        num_experts=EXPERTS,
        top_k=1,
    )
    model = MaskedAutoencoder(encoder, 16, 1, 2, mask_ratio=0.5, norm_pix_loss=False).eval()
    model.set_preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    encoder.pos_embed.zero_()
    projection = encoder.patch_embed.proj
    projection.weight.zero_()
    for channel in range(3):
        projection.weight[channel, channel, : PATCH // 2] = 0.1
        projection.weight[3 + channel, channel, PATCH // 2 :] = 0.1
    for block in encoder.blocks:
        block.attn.proj.weight.zero_()
        layer, start = block.mlp, 0 if reads == "modality" else 3
        layer.router.weight.zero_()
        for expert in range(3):
            layer.router.weight[expert, start : start + 3] = 10 * (torch.eye(3)[expert] - 1 / 3)
        layer.router.weight[3] = -layer.router.weight[:3].sum(0) - 1
        for part in layer.experts.parameters():
            part.copy_(torch.randn_like(part[:1] if same else part).expand_as(part))
        layer.experts.fc2.weight[:, :8] = 0
        layer.experts.fc2.bias[:, :8] = 0
        for own, director in layer.expert_director_pairs():
            director.copy_(own.mean(0))
        layer.router.activation_frequency.fill_(0.25)
    model.decoder_embed.weight.zero_()
    model.decoder_embed.weight[:, _WRITTEN] = torch.randn(16, 8)
    _fit(model, images)
    return model


def _fit(model: MaskedAutoencoder, images) -> None:
    """Fit the decoder's last layer by least squares."""
    (batch,) = batches(images, np.arange(min(60, len(images))), model, setting_of(model))
    seen = []
    hook = model.decoder_pred.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    mask = model(batch.images, noise=batch.noise).mask.bool()
    hook.remove()
    # As it predicts in full, visible patches first, then hidden ones.
    x = seen[0][:, -int(mask[0].sum()) :].flatten(0, 1).double()
    y = model.target(batch.images)[mask].double()
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    solved = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(17), x.T @ y)
    model.decoder_pred.weight.copy_(solved[:-1].T)
    model.decoder_pred.bias.copy_(solved[-1])
