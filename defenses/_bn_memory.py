"""How much memory an optimisation over images takes, judged before it starts."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

_AT_ONCE = 2 << 30  # bytes of activations in one pass, unless one batch needs more


def activations(net: nn.Module, image: Tensor) -> int:
    """Return the bytes of float32 that the layers of a network give out for an image `[1, C, H, W]`."""
    total = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal total
        total += 4 * output.numel() if isinstance(output, Tensor) else 0

    handles = [module.register_forward_hook(count) for module in net.modules() if not list(module.children())]
    try:
        with torch.no_grad():
            net(image)
    finally:
        for handle in handles:
            handle.remove()
    return total


def batches_at_once(image: int, batch: int, most: int) -> int:
    """Return how many batches to optimise in one pass; the machine has no say, so that results do not depend on it.

    Args:
        image: bytes of activations of one image.
        batch: images in a batch.
        most: images in a pass.
    """
    return max(1, min(most // batch, _AT_ONCE // max(1, image * batch)))


def free(device: torch.device) -> float:
    """Return the bytes of memory that are free; infinity where that is not known."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reusable)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return math.inf
