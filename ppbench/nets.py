"""Small networks of our own, named in a suite as `ppbench.nets:FUNCTION`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convnet(num_classes: int, in_chans: int = 3, width: int = 16, grid: int = 8) -> nn.Sequential:
    """Build a smooth convolutional network that one CPU core trains in seconds, for images of any size.

    Three 3 x 3 convolutions with GELU (the second and third halve the side), pooled to `grid` x `grid`, and one
    linear layer over all positions: the kind of victim on which gradient inversion is studied (Zhu et al. 2019).
    A smaller grid leaks less.

    Args:
        num_classes: number of logits.
        in_chans: channels of an image.
        width: channels after the first convolution; then twice and four times as many.
        grid: side of the pooled feature map in front of the linear layer.
    """
    features = nn.Sequential(
        nn.Conv2d(in_chans, width, 3, padding=1), nn.GELU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GELU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.GELU(),
        nn.AdaptiveAvgPool2d(grid), nn.Flatten())
    return nn.Sequential(features, nn.Linear(4 * width * grid**2, num_classes))


def mlp(num_classes: int, in_chans: int = 3, side: int = 32, width: int = 256, depth: int = 2) -> nn.Sequential:
    """Build a network of linear layers only, which federated learning must not have: its first gradient is the image.

    Args:
        num_classes: number of logits.
        in_chans: channels of an image.
        side: of the images, in pixels.
        width: of the hidden layers (GELU).
        depth: their number.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    before = in_chans * side**2
    for _ in range(depth):
        layers += [nn.Linear(before, width), nn.GELU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, num_classes))


def lenet(num_classes: int, in_chans: int = 3) -> nn.Sequential:
    """Build the sigmoid network of "Deep leakage from gradients" (Zhu et al. 2019, arXiv 1906.08935).

    Three 5 x 5 convolutions of 12 channels (the first two halve the side) and one linear layer over 8 x 8 positions,
    to which other images than those of 32 x 32 pixels are pooled; all weights are drawn from [-0.5, 0.5].

    Args:
        num_classes: number of logits.
        in_chans: channels of an image.
    """
    net = nn.Sequential(
        nn.Conv2d(in_chans, 12, 5, stride=2, padding=2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, stride=2, padding=2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(12 * 8 * 8, num_classes))
    for value in net.parameters():
        nn.init.uniform_(value, -0.5, 0.5)
    return net


def deep_convnet(num_classes: int, in_chans: int = 3, width: int = 64) -> nn.Sequential:
    """Build the network of "Inverting gradients" (Geiping et al. 2020, arXiv 2003.14053): "ConvNet".

    Eight 3 x 3 convolutions with batch normalisation and ReLU, two maxima over 3 x 3, and one linear layer over the
    3 x 3 positions that are left of 32 x 32 pixels, to which other images are pooled.

    Args:
        num_classes: number of logits.
        in_chans: channels of an image.
        width: channels after the first convolution; then twice and four times as many.
    """
    layers: list[nn.Module] = []
    channels = in_chans
    for number, times in enumerate((1, 2, 2, 4, 4, 4, 4, 4)):
        layers += [nn.Conv2d(channels, times * width, 3, padding=1), nn.BatchNorm2d(times * width), nn.ReLU()]
        layers += [nn.MaxPool2d(3)] if number in (5, 7) else []
        channels = times * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, num_classes))


def cifar_resnet(num_classes: int = 10, in_chans: int = 3, depth: int = 20,
                 mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> "CifarResNet":
    """Build the residual network for small images of He et al. 2015 (arXiv 1512.03385), section 4.2.

    A 3 x 3 convolution and three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels; shortcuts without
    parameters (option A). The names of its parameters are those of the published CIFAR-10 weights.

    Args:
        num_classes: number of logits.
        in_chans: channels of an image.
        depth: number of layers with weights, 6n + 2: 20, 32, 44, 56, 110.
        mean: of each channel in [0, 1]; for another number of channels than it has, the average serves them all.
        std: likewise.

    Raises:
        ValueError: depth is not 6n + 2, or a deviation is not positive.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth is {depth}; it must be 6n + 2, say 20 or 56")
    if not min(std) > 0:
        raise ValueError(f"std is {list(std)}; it must be above 0")
    return CifarResNet(num_classes, (depth - 2) // 6, _fit(mean, in_chans), _fit(std, in_chans))


def small_resnet18(num_classes: int, in_chans: int = 3) -> nn.Module:
    """Build ResNet-18 for small images: torchvision's, but that its first convolution is 3 x 3 and keeps the side.

    The maximum over neighbours after it is left out.

    Args:
        num_classes: number of logits.
        in_chans: channels of an image.
    """
    from torchvision.models.resnet import BasicBlock, ResNet  # takes seconds

    net: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], num_classes)
    net.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def _fit(values: Sequence[float], channels: int) -> list[float]:
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


class CifarResNet(nn.Module):
    """See `cifar_resnet`; takes images in [-1, 1], as `Model.build` hands them on."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, blocks: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        # not among the weights: files of weights come without them
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.conv1 = nn.Conv2d(len(mean), 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, values: Tensor) -> Tensor:
        """Return the logits `[N, classes]` of images `[N, C, H, W]` in [-1, 1]."""
        x = ((values + 1) / 2 - self.mean) / self.std
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut that takes every `stride`-th place and pads channels with zeros."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        found = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x
        if self.missing:
            before = self.missing // 2
            short = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, before, self.missing - before))
        return F.relu(found + short)


def _stage(channels: int, out: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(channels, out, stride), *(_Block(out, out, 1) for _ in range(blocks - 1)))
