"""Real images for benchmarks: CIFAR-10 and photographs, from data/ or from the folder named by PPBENCH_DATA."""

import os
from pathlib import Path

import numpy as np
import torch
from _table import refuse
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("PPBENCH_DATA", ROOT / ".." / "shared"))
CIFAR = ROOT / "data" / "cifar10.npz"


def cifar10(part: str) -> tuple[Tensor, Tensor]:
    """Return the images `[N, 3, 32, 32]` in [0, 1] and labels `[N]` of `train` or `test`; end where they are absent."""
    if not CIFAR.is_file():
        refuse("data/cifar10.npz is not there: leaderboards/README.md says how to make it")
    with np.load(CIFAR, allow_pickle=False) as file:
        images, labels = file[f"{part}_images"], file[f"{part}_labels"]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels.ravel()).long()


def photographs(count: int, side: int = 224) -> Tensor | None:
    """Return square photographs `[count, 3, side, side]`; None where there are none."""
    files = sorted((SHARED / "data" / "imagenet_sample").glob("*.*"))[:count]
    found = [np.asarray(Image.open(file).convert("RGB").resize((side, side))) for file in files]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255 if found else None
