"""Small networks of our own, named in a suite as `ppbench.nets:FUNCTION`."""

from torch import nn


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
