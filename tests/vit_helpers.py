"""Small vision transformers whose weights matter, for tests of what adapts them."""

from typing import Any

import torch
from torch import Tensor, nn

from ppbench.data import Shape
from ppbench.model import Model, for_images
from ppbench.seeding import generator, seeded

SMALL: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit(shape: Shape = (3, 16, 16), name: str = "vit_tiny_patch16_224", std: float = 0.2, **more: Any) -> Model:
    """Return a ViT with normal weights and biases: at timm's start of 0.02 even an order that counts hides."""
    model = for_images(f"timm:{name}", {**SMALL, **more}, shape, 5)
    if name.startswith("deit"):
        model = Model(model.factory, {**model.kwargs, "img_size": list(shape[1:])})
    with seeded(0):
        net = model.build()
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=std)
    return model.with_state(net)


def images8(count: int, shape: Shape = (3, 16, 16), seed: int = 0) -> Tensor:
    """Return noise of 8 bit, `[count, *shape]`."""
    return torch.randint(256, (count, *shape), generator=generator(seed)).float() / 255


@torch.no_grad()
def logits(model: Model, images: Tensor) -> Tensor:
    """Return a model's logits in float64: what remains of a difference is no rounding."""
    out: Tensor = model.build().eval().double()(images.double())
    return out
