"""What an adversary expects released images to be like."""

import torch
from torch import Tensor

from ppbench.defense import resize
from ppbench.seeding import spawn
from ppbench.view import View


def like_released(view: View, rng: torch.Generator, count: int = 256) -> Tensor:
    """Return images `[M, c, h, w]` like the released ones: public images, protected with keys of one's own.

    A defense that works on the whole set rather than image by image (synthesis) is too costly to run again.
    """
    public = view.public[:count]
    if view.algorithm.defense.partnered:
        return view.algorithm.protect(public, spawn(rng)).images
    return resize(public.pixels, view.released_shape)
