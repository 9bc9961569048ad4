"""Small batch-norm teachers, and images that they learn at once."""

import torch
from torch import Tensor, nn

from ppbench.data import Images
from ppbench.defenses._bn_teacher import fresh_teacher, train
from ppbench.seeding import generator, seeded


def coloured(labels: list[int], channels: int = 3, side: int = 16, seed: int = 0) -> Images:
    """Noise around one level a class, so that a small network learns the classes at once."""
    classes, rng = torch.tensor(labels), generator(seed)
    level = torch.rand(1 + max(labels), channels, 1, 1, generator=rng)
    pixels = (level[classes] + 0.2 * torch.randn(len(labels), channels, side, side, generator=rng)).clamp(0, 1)
    return Images(pixels, classes, torch.arange(len(labels)))


def teacher_of(private: Images, epochs: int = 2) -> nn.Module:
    with seeded(0) as rng:
        net = fresh_teacher("ppbench.defenses._bn_teacher:conv_net", private.shape, int(private.labels.max()) + 1)
        train(net, private.pixels, private.labels, epochs, rng)
    return net.requires_grad_(False)


def inputs_of_bn(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Catch what goes into every batch-norm layer, with plain hooks, in float64."""
    caught: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _, args, __: caught.append(args[0].double()))
             for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return caught


def by_hand(net: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance a channel over all images and places at once."""
    axes = [(0, *range(2, values.ndim)) for values in inputs_of_bn(net, images)]
    return [(values.mean(axis), values.var(axis, correction=0))
            for values, axis in zip(inputs_of_bn(net, images), axes, strict=True)]
