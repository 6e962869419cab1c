"""What a fine-tuned model says of a split's images: each image once, whatever the batches and the processes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dexcore.engine.ranks import ALONE, Ranks
from dexcore.engine.stop import leave_signals_to_parent
from dexcore.evaluate.embedding.encode import gates_of
from dexcore.evaluate.finetuning.build import route_rows
from dexcore.evaluate.finetuning.data import Shown, TaskImages, TestView, sorted_rows
from dexcore.evaluate.prediction.images import input_of
from dexcore.evaluate.prediction.native import at_size, decided
from dexcore.evaluate.scores import Predictions, write_mask
from dexcore.evaluate.scores.predictions import Kind, mask_name
from dexcore.evaluate.tasks import Row, Task
from dexcore.evaluate.tasks.table import SplitName
from dexcore.measures.overlap import count_channels, count_classes
from dexcore.models import TaskModel
from dexcore.models.precision import autocast
from dexcore.nn.mlp import DEXMlp


class Predictor:
    """A model on a task's images.

    Args:
        model: in training or not: it predicts in evaluation, and is as it was afterwards.
        task: whose images it is shown, unchanged.
        precision, batch_size, workers: of the forward, which does not change what comes out but for roundings.
        ranks: the processes that share the images: each image is of one of them.
        kept: bytes of memory for the images and masks that `count` has read.

    Attributes:
        gates: what each expert received of the images that were predicted last, [images, layers, experts], in their
            order; None of a model without experts, or whose directors compute.
    """

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        precision: str,
        batch_size: int,
        workers: int = 0,
        ranks: Ranks = ALONE,
        kept: int = 0,
    ) -> None:
        self.model, self.task, self.precision = model, task, precision
        self.batch_size, self.workers, self.ranks = batch_size, workers, ranks
        self._kept = kept
        self.gates: np.ndarray | None = None
        self._own_gates: list[Tensor] = []  # of this process, a batch each
        self._counted: dict[SplitName, TaskImages] = {}

    def predict(self, split: SplitName, folder: Path, name: str, seed: int | None) -> Predictions:
        """Predictions of a split, the same on all processes; masks are written into ``folder`` at native size.

        Raises:
            TaskError: an image cannot be read.
            OSError: a mask cannot be written.
        """
        images = TaskImages(self.task, sorted_rows(self.task, split))
        if not self.task.spec.is_segmentation:
            return self._labels(images, name, seed)
        names = [row.image for row in images.rows]
        with self.ranks.patient() as ranks:
            for shown, logits in self._logits(images):
                write_mask(folder, names[shown.number], self._mask(shown, logits))
            ranks.gather(torch.zeros(1))  # all of them are there
            self.gates = self._gathered_gates(ranks)
        paths = [str(folder / mask_name(image)) for image in names]
        return Predictions.of(self.task, "mask", names, paths, name, seed)

    def count(self, split: SplitName, name: str, seed: int) -> Predictions:
        """The same of a split whose labels may be seen, but of masks only their counts; nothing is written.

        Raises:
            TestLabelsError: the split is test.
            TaskError: an image or a mask cannot be read.
        """
        if split not in self._counted:
            self._counted[split] = TaskImages(self.task, sorted_rows(self.task, split), self._kept)
        images = self._counted[split]
        if not self.task.spec.is_segmentation:
            return self._labels(images, name, seed)

        def counted(shown: Shown, logits: Tensor) -> Tensor:
            reference, mask = shown.reference, self._mask(shown, logits)
            assert reference is not None
            if mask.ndim == 3:
                counts = count_channels(reference.astype(bool), mask)
            else:
                counts = count_classes(reference, mask, len(self.task.classes), self.task.spec.ignore)
            return torch.from_numpy(np.asarray(counts, np.int64))

        empty = torch.empty((0, len(self.task.classes), 5), dtype=torch.int64)
        return self._gathered(images, "counts", counted, empty, name, seed)

    def _labels(self, images: TaskImages, name: str, seed: int | None) -> Predictions:
        empty = torch.empty((0, len(self.task.classes)), dtype=torch.float16)
        return self._gathered(images, "logits", lambda _, logits: logits.cpu().to(empty.dtype), empty, name, seed)

    def _mask(self, shown: Shown, logits: Tensor) -> np.ndarray:
        return decided(self.task.spec.kind, at_size(logits[None], *shown.size)[0])

    def _gathered(
        self,
        images: TaskImages,
        kind: Kind,
        of_image: Callable[[Shown, Tensor], Tensor],
        empty: Tensor,
        name: str,
        seed: int | None,
    ) -> Predictions:
        """What all processes find, in the order of the rows: each has a run of them. ``empty`` is that of no image."""
        with self.ranks.patient() as ranks:  # images are shared by number, and one may be a hundred times another
            own = [of_image(*found) for found in self._logits(images, references=kind == "counts")]
            values = ranks.gather(torch.stack(own) if own else empty).numpy()
            self.gates = self._gathered_gates(ranks)
        return Predictions.of(self.task, kind, [row.image for row in images.rows], values, name, seed)

    def _routed(self) -> list[DEXMlp]:
        """The layers whose experts compute."""
        return [part for part in self.model.modules() if isinstance(part, DEXMlp) and part.mode == "experts"]

    def _gathered_gates(self, ranks: Ranks) -> np.ndarray | None:
        """The gates of all processes' images, in the order of the rows."""
        layers = self._routed()
        if not layers:
            return None
        empty = torch.empty((0, len(layers), max(layer.num_experts for layer in layers)))
        return ranks.gather(torch.cat([empty, *self._own_gates])).numpy()

    def _share(self, rows: Sequence[Row]) -> list[int]:
        """The numbers of this process's rows: neighbors, since slices share a file."""
        return np.array_split(np.arange(len(rows)), self.ranks.count)[self.ranks.rank].tolist()

    @torch.inference_mode()
    def _logits(self, images: TaskImages, references: bool = False) -> Iterator[tuple[Shown, Tensor]]:
        """This process's images with their logits, float32."""
        numbers = self._share(images.rows)
        device = next(self.model.parameters()).device
        view = TestView(images, input_of(self.model.encoder, self.model.task), references)
        batches = [numbers[start : start + self.batch_size] for start in range(0, len(numbers), self.batch_size)]
        loader = DataLoader(
            view,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=leave_signals_to_parent,
        )
        before, layers = self.model.training, self._routed()
        self._own_gates = []
        self.model.eval()
        try:
            for items in loader:
                for item in items:
                    if isinstance(item, Exception):
                        raise item
                inputs = torch.stack([shown.image for shown in items]).to(device)
                route_rows(self.model, [images.rows[shown.number] for shown in items])
                with autocast(device, self.precision):
                    logits = self.model(inputs)
                if layers:
                    self._own_gates.append(gates_of(layers).cpu())
                yield from zip(items, logits.float(), strict=True)
        finally:
            self.model.train(before)
