"""What a fine-tuned model says of a split's images: each image once, whatever the batches and the processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dexcore.engine.ranks import ALONE, Ranks
from dexcore.engine.stop import leave_signals_to_parent
from dexcore.evaluate.embedding.encode import gates_of
from dexcore.evaluate.finetuning.data import TestView, sorted_rows
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

    Attributes:
        gates: what each expert received of the images of the last `predict`, [images, layers, experts], in the order of
            its predictions; None of a model without experts, or whose directors compute.
    """

    def __init__(
        self, model: TaskModel, task: Task, precision: str, batch_size: int, workers: int = 0, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.task, self.precision = model, task, precision
        self.batch_size, self.workers, self.ranks = batch_size, workers, ranks
        self.gates: np.ndarray | None = None
        self._own_gates: list[Tensor] = []  # of this process, a batch each

    def predict(self, split: SplitName, folder: Path, name: str, seed: int | None) -> Predictions:
        """Predictions of a split, the same on all processes; masks are written into ``folder`` at native size.

        Raises:
            TaskError: an image cannot be read.
            OSError: a mask cannot be written.
        """
        rows = sorted_rows(self.task, split)
        if self.task.spec.is_segmentation:
            for row, logits in self._logits(rows):
                write_mask(folder, row.image, self._mask(row, logits))
            self.ranks.gather(torch.zeros(1))  # all of them are there
            self.gates = self._gathered_gates()
            paths = [str(folder / mask_name(row.image)) for row in rows]
            return Predictions.of(self.task, "mask", [row.image for row in rows], paths, name, seed)
        found = [logits.cpu().to(torch.float16) for _, logits in self._logits(rows)]
        self.gates = self._gathered_gates()
        return self._gathered(rows, "logits", found, (len(self.task.classes),), name, seed)

    def count(self, split: SplitName, name: str, seed: int) -> Predictions:
        """The same of a split whose labels may be seen, but of masks only their counts; nothing is written.

        Raises:
            TestLabelsError: the split is test.
            TaskError: an image or a mask cannot be read.
        """
        if not self.task.spec.is_segmentation:
            return self.predict(split, Path(), name, seed)
        rows = sorted_rows(self.task, split)
        found = []
        for row, logits in self._logits(rows):
            reference, mask = self.task.mask(row), self._mask(row, logits)
            if mask.ndim == 3:
                counts = count_channels(reference, mask)
            else:
                counts = count_classes(reference, mask, len(self.task.classes), self.task.spec.ignore)
            found.append(torch.from_numpy(np.asarray(counts, np.int64)))
        return self._gathered(rows, "counts", found, (len(self.task.classes), 5), name, seed)

    def _mask(self, row: Row, logits: Tensor) -> np.ndarray:
        height, width = self.task.image(row).shape[:2]
        return decided(self.task.spec.kind, at_size(logits[None], height, width)[0])

    def _gathered(
        self, rows: Sequence[Row], kind: Kind, own: list[Tensor], shape: tuple[int, ...], name: str, seed: int | None
    ) -> Predictions:
        """What all processes found, in the order of the rows: each has a run of them."""
        empty = torch.empty((0, *shape), dtype=torch.float16 if kind == "logits" else torch.int64)
        values = self.ranks.gather(torch.stack(own) if own else empty).numpy()
        return Predictions.of(self.task, kind, [row.image for row in rows], values, name, seed)

    def _routed(self) -> list[DEXMlp]:
        """The layers whose experts compute."""
        return [part for part in self.model.modules() if isinstance(part, DEXMlp) and part.mode == "experts"]

    def _gathered_gates(self) -> np.ndarray | None:
        """The gates of all processes' images, in the order of the rows."""
        layers = self._routed()
        if not layers:
            return None
        empty = torch.empty((0, len(layers), max(layer.num_experts for layer in layers)))
        return self.ranks.gather(torch.cat([empty, *self._own_gates])).numpy()

    def _share(self, rows: Sequence[Row]) -> list[int]:
        """The numbers of this process's rows: neighbors, since slices share a file."""
        return np.array_split(np.arange(len(rows)), self.ranks.count)[self.ranks.rank].tolist()

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Tensor]]:
        """This process's rows with their logits, float32."""
        numbers = self._share(rows)
        device = next(self.model.parameters()).device
        view = TestView(self.task, rows, input_of(self.model.encoder, self.model.task))
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
                for _, image in items:
                    if isinstance(image, Exception):
                        raise image
                images = torch.stack([image for _, image in items]).to(device)
                with autocast(device, self.precision):
                    logits = self.model(images)
                if layers:
                    self._own_gates.append(gates_of(layers).cpu())
                for (number, _), own in zip(items, logits.float(), strict=True):
                    yield rows[number], own
        finally:
            self.model.train(before)
