"""What a case has beside its image, from the file to a patch: masks by default, other targets by other tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from nissl.config import DataConfig
from nissl.data.cases import Case, CaseFile, load_case
from nissl.data.resizing import resize_mask
from nissl.imageio.label_map import LabelMap


class Targets:
    """Masks: a class for each pixel. A task with other targets that lie on the pixels overrides what differs."""

    def read(self, file: CaseFile, label_map: LabelMap, config: DataConfig) -> Case:
        """Read the image of a case, and its target if there is one; errors as of `load_case`."""
        return load_case(file, label_map, config)

    def resized(self, target: Any, size: Sequence[int]) -> Any:
        """Bring a target to the network's size."""
        return resize_mask(target, size)

    def counts(self, target: Any, outputs: int) -> Int[np.ndarray, "outputs"]:
        """How often each class is in a target; the first is the background, the others may be patch centres."""
        return np.bincount(target.ravel(), minlength=outputs)


MASKS = Targets()
