"""A data set for fixtures that live longer than one test."""

from pathlib import Path

import numpy as np


def small_npz(folder: Path) -> Path:
    """Write 76 noisy 16 x 16 colour images of 3 classes to `<folder>/tiny.npz`, in MedMNIST's key convention."""
    images = np.random.default_rng(0).integers(0, 256, (76, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "tiny.npz", train_images=images[:64], train_labels=np.arange(64) % 3,
             test_images=images[64:], test_labels=np.arange(12) % 3)
    return folder / "tiny.npz"
