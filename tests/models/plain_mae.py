"""A masked autoencoder with DEX layers in the plainest words: loops over images, patches and experts.

It reads a `MaskedAutoencoder`'s state dict by name and shares no code with it.
"""

import math
from typing import NamedTuple

import torch


class Sizes(NamedTuple):
    patch: tuple[int, int]
    heads: int
    decoder_heads: int
    visible: int
    top_k: list[int]  # one a block; ignored by dense blocks
    prefix: int = 1
    positions_for_prefix: bool = True
    norm_pix_loss: bool = True


def plain_mae(state, images, noise, sizes):
    """loss, pred [B, L, K] and mask [B, L] for images [B, C, H, W] and noise [B, L]."""
    preds, masks, losses = [], [], []
    for image, draw in zip(images, noise, strict=True):
        patches = cut(image, sizes.patch)
        pred, mask = _one_image(state, image, draw.tolist(), sizes)
        target = torch.stack([_normalize(patch) if sizes.norm_pix_loss else patch for patch in patches])
        losses += [((pred[i] - target[i]) ** 2).mean() for i in range(len(mask)) if mask[i]]
        preds.append(pred)
        masks.append(torch.tensor(mask, dtype=images.dtype))
    return sum(losses) / len(losses), torch.stack(preds), torch.stack(masks)


def cut(image, patch):
    """The patches of an image [C, H, W], row by row; each ordered (row, column, channel)."""
    height, width = patch
    return [
        image[:, top : top + height, left : left + width].permute(1, 2, 0).reshape(-1)
        for top in range(0, image.shape[1], height)
        for left in range(0, image.shape[2], width)
    ]


def position(dim, row, column):
    """One patch's position: sines and cosines of the column, then of the row."""
    values = []
    for coordinate in (column, row):
        angles = [coordinate / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
        values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(values, dtype=torch.float64)


def _normalize(patch):
    mean = patch.sum() / patch.numel()
    variance = ((patch - mean) ** 2).sum() / (patch.numel() - 1)
    return (patch - mean) / (variance + 1e-6) ** 0.5


def _one_image(state, image, noise, sizes):
    encoder = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    columns = image.shape[2] // sizes.patch[1]
    length = (image.shape[1] // sizes.patch[0]) * columns
    dim, decoder_dim = encoder["patch_embed.proj.weight"].shape[0], state["mask_token"].shape[-1]
    visible = sorted(range(length), key=lambda i: noise[i])[: sizes.visible]

    weight = encoder["patch_embed.proj.weight"].permute(0, 2, 3, 1).reshape(dim, -1)  # to (row, column, channel)
    patches = cut(image, sizes.patch)
    tokens = [encoder[name][0] for name in ("cls_token", "reg_token") if name in encoder]
    for i in visible:
        embedded = weight @ patches[i] + encoder["patch_embed.proj.bias"]
        tokens.append((embedded + position(dim, i // columns, i % columns).to(image.dtype))[None])
    x = _blocks(encoder, "blocks", torch.cat(tokens), sizes.heads, sizes.top_k)
    x = _linear(state, "decoder_embed", _norm(encoder, "norm" if "norm.weight" in encoder else "fc_norm", x))

    rows = []
    for i in range(length):
        row = x[sizes.prefix + visible.index(i)] if i in visible else state["mask_token"][0, 0]
        rows.append(row + position(decoder_dim, i // columns, i % columns).to(image.dtype))
    x = torch.cat([x[: sizes.prefix], torch.stack(rows)])
    x = _norm(state, "decoder_norm", _blocks(state, "decoder_blocks", x, sizes.decoder_heads, []))
    return _linear(state, "decoder_pred", x)[sizes.prefix :], [int(i not in visible) for i in range(length)]


def _blocks(state, name, x, heads, top_k):
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith(name + "."))
    for i in range(depth):
        block = f"{name}.{i}"
        x = x + _attention(state, f"{block}.attn", _norm(state, f"{block}.norm1", x), heads)
        y = _norm(state, f"{block}.norm2", x)
        x = x + (_experts(state, f"{block}.mlp", y, top_k[i]) if f"{block}.mlp.router.weight" in state
                 else _ffn(y, *(state[f"{block}.mlp.{p}"] for p in _FFN)))  # fmt: skip
    return x


_FFN = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def _experts(state, name, x, top_k, tau=0.5):
    scores = torch.exp(state[f"{name}.router.weight"] @ x[0] / tau)
    shares = scores / scores.sum()
    chosen = sorted(range(len(shares)), key=lambda e: -shares[e].item())[:top_k]
    total = sum(shares[e] for e in chosen)
    return sum(shares[e] / total * _ffn(x, *(state[f"{name}.experts.{p}"][e] for p in _FFN)) for e in chosen)


def _ffn(x, w1, b1, w2, b2):
    z = x @ w1.T + b1
    return (z * (1 + torch.erf(z / math.sqrt(2))) / 2) @ w2.T + b2


def _attention(state, name, x, heads):
    query, key, value = _linear(state, f"{name}.qkv", x).chunk(3, dim=-1)
    size = x.shape[-1] // heads
    outputs = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        weights = torch.exp(query[:, part] @ key[:, part].T / math.sqrt(size))
        outputs.append(weights / weights.sum(-1, keepdim=True) @ value[:, part])
    return _linear(state, f"{name}.proj", torch.cat(outputs, dim=-1))


def _norm(state, name, x):
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-6) ** 0.5
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
