"""The class of each pixel."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Integer, UInt8
from torch import Tensor

from nissl.config import DataConfig
from nissl.data.batches import Store
from nissl.data.cases import Case, CaseFile, Dataset, mask_values
from nissl.data.targets import MASKS
from nissl.errors import Caveat, DataError
from nissl.imageio.formats import TIFF, Raster, suffix, write_mask
from nissl.imageio.label_map import LabelMap
from nissl.imageio.mask_values import MaskValues
from nissl.imageio.tiff_regions import write_mask_tiff
from nissl.losses import segmentation_losses
from nissl.metrics.metric import SEGMENTATION, Metric
from nissl.metrics.overlap import EMPTY_POLICY
from nissl.progress import warn
from nissl.tasks import settings
from nissl.tasks.overlay import Masks, colour_of, draw_overlay
from nissl.tasks.scores import COLUMNS, CaseScore, Summary, score_case, summarise
from nissl.tasks.task import Task


class Segmentation(Task):
    """Targets are masks, outputs logits of the classes, the first of which is the background."""

    name: ClassVar[str] = "segmentation"
    metrics: ClassVar[tuple[Metric, ...]] = SEGMENTATION
    columns = COLUMNS
    classes = True
    counted: ClassVar[Mapping[str, str]] = {
        "n_missed": "missed",
        "n_false_positive": "false positive",
        "n_both_empty": "both empty",
    }
    trivial = "foreground everywhere"
    policy = EMPTY_POLICY
    targets = MASKS

    def __init__(self, options: settings.Segmentation | None = None) -> None:
        self.settings = options or settings.Segmentation()

    def outputs(self, dataset: Dataset) -> tuple[str, ...]:
        """Names of the classes."""
        return dataset.label_map.names

    def values(self, files: Iterable[CaseFile], label_map: LabelMap, config: DataConfig) -> tuple[int | str, ...]:
        """Values or colours of the classes in the user's masks."""
        return mask_values(files, label_map, config)

    def require_learnable(self, labelled: Store, dataset: Dataset) -> dict[str, int]:
        """Count the pixels of each class as the network sees them; warn of a class that no mask shows.

        Raises:
            DataError: all masks are empty.

        """
        names = dataset.label_map.names
        counts = np.zeros(len(names), np.int64)
        for index in range(len(labelled)):
            found = labelled.counts(index)
            counts[: len(found)] += found
        masks = "the only mask" if len(labelled) == 1 else f"all {len(labelled)} masks"
        if not counts[1:].any():
            fix = "choose more --labels, other ids or another --seed, or draw the structures"
            raise DataError(dataset.place, f"no foreground in {masks} of the budget", "structures to learn", fix)
        for name, count in zip(names, counts, strict=True):
            if not count:
                warn(f"class `{name}` is absent from {masks} of the budget: not trained")
        return {name: int(count) for name, count in zip(names, counts, strict=True)}

    def losses(
        self, outputs: Float[Tensor, "batch classes *space"], targets: Integer[Tensor, "batch *space"], loss: str
    ) -> dict[str, Float[Tensor, ""]]:
        """Soft Dice and cross-entropy, as `segmentation_losses`."""
        return segmentation_losses(outputs, targets, loss)

    def degenerate(self, outputs: Iterable[Tensor], targets: Integer[Tensor, "batch *space"]) -> str:
        """Say that the network calls every pixel background, while the masks show structures."""
        fractions = torch.bincount(targets.flatten()).double() / targets.numel()
        if float(fractions[0]) == 1 or any(bool((logits.argmax(1) > 0).any()) for logits in outputs):
            return ""
        listed = ", ".join(f"class {label}: {value:.2%}" for label, value in enumerate(fractions.tolist()) if label)
        return (
            f"the network calls every pixel background, while in the last masks {listed}; if it stays so, try more "
            "--steps, another --train.learning-rate, or --data.sampling patches with a larger --data.foreground"
        )

    def decode(self, outputs: Float32[np.ndarray, "classes *space"]) -> UInt8[np.ndarray, "*space"]:
        """The most probable class of each pixel."""
        labels: UInt8[np.ndarray, "*space"] = outputs.argmax(axis=0).astype(np.uint8)
        return labels

    def rows(self, case: Case, prediction: np.ndarray, outputs: Sequence[str]) -> list[CaseScore]:
        """A row for each class but the background."""
        assert case.target is not None
        return score_case(case.id, case.group, prediction, case.target, outputs, case.spacing)

    def summarise(
        self, rows: Sequence[Any], rng: np.random.Generator, counts: Mapping[str, int], caveats: Sequence[Caveat]
    ) -> Summary:
        """Means over cases, then over classes, with intervals."""
        return summarise(rows, rng, [name for name, count in counts.items() if count == 0], caveats)

    def alike(self, row: CaseScore) -> Mapping[str, str]:
        """Units and reference."""
        return {
            "units of distance": f"`{row.distance.unit}`",
            "references": f"{row.overlap.reference} of {row.pixels} pixels are {row.label}",
        }

    def unit(self, row: CaseScore) -> str:
        """That of distances."""
        return row.distance.unit

    def false_positives(self, rows: Sequence[CaseScore]) -> int:
        """Classes in a prediction that are not in the mask: against an empty one, there is no Dice."""
        return sum(row.overlap.presence == "false positive" for row in rows)

    def remark(self, row: CaseScore) -> str:
        """In which mask the class is missing."""
        return "" if row.overlap.presence == "both" else row.overlap.presence

    def picture(self, case: Case, prediction: Case) -> str:
        """Outlines of both masks on the image."""
        assert case.target is not None and prediction.target is not None
        turned = bool(prediction.direction)  # a file that states its place has the axes of NIfTI
        return draw_overlay(Masks(case.image, case.target, prediction.target, case.spacing, turned))

    def legend(self, outputs: Sequence[str]) -> list[tuple[str, str]]:
        """Colours of the classes."""
        return [(name, colour_of(label)) for label, name in enumerate(outputs) if label]

    def write(
        self, path: Path, pieces: Iterator[np.ndarray], like: Raster, values: Sequence[int | str], note: str
    ) -> None:
        """Write a mask; a TIFF band by band."""
        drawn, shape = MaskValues.of(values), like.pixels.shape[1:]
        if suffix(path) in TIFF:
            write_mask_tiff(path, shape, pieces, drawn, like.spacing, note)
        else:
            write_mask(path, np.concatenate(list(pieces)), like, note, drawn)
