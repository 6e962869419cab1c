"""DEX in your own timm code: upcycle a stock ViT, train it, tune its director, and go back to plain timm.

    python examples/drop_in.py

A dense twin, the same ViT without experts, is trained beside it on the same batches. The images are generated:
ultrasound, fundus, pathology and skin photographs with no, compact or spread lesions, and one classifier has to tell
which, in all four. Under a minute on two CPU cores; the numbers show that it works, not which of the two is better.
"""

import argparse
import copy
import math
import tempfile
import time

import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf
from torch import Tensor, nn

from dexcore.data.modality import Modality
from dexcore.data.synthetic import SyntheticMVU
from dexcore.nn import aux_losses, collapse, param_groups, set_mode, set_noise_std, upcycle, update_directors

CLASSES = ("healthy", "compact", "spread")
MODALITIES = (Modality.ULTRASOUND, Modality.FUNDUS, Modality.PATHOLOGY, Modality.PHOTO)
SIZE = 48
BATCH = 32


def draw_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 3, SIZE, SIZE], about in -1 to 1, and their classes [count]."""
    source = SyntheticMVU(MODALITIES, SIZE, seed)
    images, classes = [], []
    for index in range(count):
        sample = source.sample(index)
        image = torch.from_numpy(sample.image).reshape(SIZE, SIZE, -1)  # gray or RGB
        images.append(image.expand(-1, -1, 3).permute(2, 0, 1))
        classes.append(CLASSES.index(source.labels[sample.label].split()[0]))
    return torch.stack(images) * 2 - 1, torch.tensor(classes)


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, lr: float, experts: bool = False) -> float:
    """AdamW on ``steps`` batches, with or without what DEX layers in experts mode need; seconds a step."""
    images, classes = data
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.05), lr=lr)
    batches = torch.Generator().manual_seed(0)  # the same for both models
    model.train()
    start = time.perf_counter()
    for step in range(steps):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 10 * progress + 0.1) * 0.5 * (1 + math.cos(math.pi * progress))
        batch = torch.randint(len(images), (BATCH,), generator=batches)
        if experts:
            set_noise_std(model, 0.5 * (1 + math.cos(math.pi * progress)))  # routers explore, then settle
        loss = F.cross_entropy(model(images[batch]), classes[batch])
        if experts:
            aux = aux_losses(model)
            loss = loss + 0.01 * aux.align + 0.01 * aux.balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if experts:
            update_directors(model, momentum=0.9 + 0.09 * progress)  # after the optimizer's step
    return (time.perf_counter() - start) / max(steps, 1)


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the images told right, 0 to 1."""
    images, classes = data
    model.eval()
    chosen = torch.cat([model(part).argmax(1) for part in images.split(256)])
    return (chosen == classes).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Upcycle a timm ViT, train it, and go back to plain timm.")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--images", type=int, default=2000, help="generated training images")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.images) < 1:
        parser.error("--steps and --images must be at least 1")
    torch.manual_seed(0)
    seen, unseen = draw_images(arguments.images, seed=0), draw_images(max(arguments.images // 2, 1), seed=1)

    dense = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=3,
        num_classes=len(CLASSES),
    )
    dex = upcycle(copy.deepcopy(dense), num_experts=4, top_k=2)

    def report(name: str, model: nn.Module, note: str) -> None:
        print(f"{name:36} {accuracy(model, unseen):6.1%}   {note}", flush=True)

    print(f"{'accuracy on unseen images':36} {unseen[1].bincount().max() / len(unseen[1]):6.1%}   by chance")
    seconds = train(dense, seen, arguments.steps, lr=1e-3)
    report("dense ViT", dense, f"{seconds * 1e3:.0f} ms a step")
    seconds = train(dex, seen, arguments.steps, lr=1e-3, experts=True)
    report("upcycled, through its experts", dex, f"{seconds * 1e3:.0f} ms a step")
    set_mode(dex, "director")  # a plain ViT's cost, and the director learns by gradient from here
    report("upcycled, through its director", dex, "never trained by gradient")

    tuning = arguments.steps // 4
    train(dense, seen, tuning, lr=3e-4)
    report("dense ViT, tuned", dense, f"{tuning} steps more")
    train(dex, seen, tuning, lr=3e-4)
    report("director, tuned", dex, f"{tuning} steps more")

    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(collapse(dex), folder)
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True)  # dexcore is not needed here
    report("collapsed, saved, loaded by timm", plain, f"a plain {type(plain).__name__}")
    with torch.no_grad():
        same = torch.equal(plain(unseen[0][:BATCH]), dex(unseen[0][:BATCH]))
    print("the loaded model and the tuned director agree " + ("bit for bit" if same else "NOT bit for bit"))
    print(
        "It shows that the way there and back works. It is no evidence for or against experts: one seed, seconds of\n"
        "training, generated images of four modalities."
    )


if __name__ == "__main__":
    main()
