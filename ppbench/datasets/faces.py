"""The grey faces in scikit-image's wheel, a subset of Labeled Faces in the Wild.

Source: Huang et al., "Labeled Faces in the Wild", University of Massachusetts technical report 07-49, 2007.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ppbench.data import Dataset, Pool
from ppbench.datasets._resize import squares
from ppbench.datasets._skimage import wheel_file

FACES = 100


@dataclass(frozen=True)
class Faces(Dataset):
    """100 grey faces (label 1) and 100 cuttings of background (label 0), 25 x 25, resized with bicubic antialiasing."""

    def pools(self, size: int | None) -> Mapping[str, Pool]:
        """Return the pool `all`: 200 images with one channel (the size None: 25 pixels)."""
        values = np.load(wheel_file("lfw_subset.npy"), allow_pickle=False)
        pixels = np.round(values * 255).astype(np.uint8)[..., None]
        labels = (np.arange(len(pixels)) < FACES).astype(np.int64)
        return {"all": Pool(squares(pixels, size), labels)}
