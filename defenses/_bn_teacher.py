"""The teacher of `bn-synthesis`: a small batch-norm network, and its training on the private images."""

import math
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defenses._bn_statistics import bn_layers
from ppbench.device import mixed
from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.partial import partial
from ppbench.weights import read_weights


def conv_net(num_classes: int, in_chans: int = 3, width: int = 32) -> nn.Module:
    """Return three 3 x 3 convolutions of stride 2 with batch norm, widths w, 2w and 2w, and a linear head.

    Small on purpose: on a few hundred images the statistics of a deeper network are harder to match in the same
    number of steps, and what is learnt from the synthetic images was no better.
    """
    layers: list[nn.Module] = []
    channels = in_chans
    for out in (width, 2 * width, 2 * width):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def fresh_teacher(factory: str, shape: Shape, classes: int, weights: str = "") -> nn.Module:
    """Build a teacher for images of `shape`, its weights drawn from the global generator or read from a file.

    Args:
        factory: names the network.
        shape: (C, H, W).
        classes: number of logits; a file of weights may have more.
        weights: path of the file; empty = fresh weights.

    Raises:
        UserError: it cannot be built, does not take such images, has no batch norm to read, or the weights are not its.
    """
    net = _network(factory, shape, classes)
    if not bn_layers(net):
        raise UserError(f"the teacher {factory!r} has no batch norm to take statistics from: choose one that has, "
                        "say torchvision:resnet18")
    if weights:
        state = read_weights(Path(weights), "teacher_weights")
        if (more := _outputs(net, state)) > classes:
            net = _network(factory, shape, more)
        _load(net, state, factory, weights)
    try:
        with torch.no_grad():
            outputs = net.eval()(torch.zeros(1, *shape))
            if not weights:
                outputs = deepcopy(net).train()(torch.zeros(2, *shape))
        if not isinstance(outputs, Tensor):
            raise TypeError(f"in training it gives a {type(outputs).__name__}, not logits")
    except Exception as error:
        raise UserError(f"the teacher {factory!r} does not take images of shape {list(shape)}: {error}") from error
    return net


def _network(factory: str, shape: Shape, classes: int) -> nn.Module:
    model = for_images(factory, {}, shape, classes)
    if not factory.startswith(("timm:", "torchvision:")):
        model = Model(factory, {**model.kwargs, "in_chans": shape[0]})
    return model.build()


def _outputs(net: nn.Module, state: Tensors) -> int:
    """Return how many logits the weights give where they differ from the network in that alone; 0 = they do not."""
    odd = {each.shape[0] for name, own in net.state_dict().items()
           if (each := state.get(name.removeprefix("net."))) is not None and each.shape != own.shape
           and each.ndim == own.ndim and each.shape[1:] == own.shape[1:]}
    return odd.pop() if len(odd) == 1 else 0


def _load(net: nn.Module, state: Tensors, factory: str, path: str) -> None:
    own = {name.removeprefix("net."): value for name, value in net.state_dict().items()}
    # files from before PyTorch 0.4.1 do not count the batches
    odd = [name for name in sorted(own.keys() ^ state.keys()) if not name.endswith("num_batches_tracked")]
    odd += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if odd:
        raise UserError(f"teacher_weights {path!r} does not fit the teacher {factory!r} with images of this shape "
                        f"({odd[0]} and {len(odd) - 1} others differ): give the weights of that network")
    net.load_state_dict({f"net.{name}": state.get(name, value) for name, value in own.items()})


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int, rng: torch.Generator,
          batch: int = 64, lr: float = 5e-3, amp: bool = False) -> None:
    """Train a classifier on images `[N, C, H, W]` in [0, 1] with flips and shifts by up to 1/8; leave it in eval mode.

    Adam, its learning rate falling as a cosine; with `amp` in bfloat16 (`ppbench.device.mixed`).
    """
    layout = torch.channels_last if amp else torch.contiguous_format  # the kernels of bfloat16 are fastest so
    net.to(memory_format=layout)
    parts = math.ceil(len(images) / batch)
    optimiser = torch.optim.Adam(net.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * parts)
    net.train()
    for epoch in range(epochs):
        partial().report(epoch, epochs, "teacher epochs")
        # equal parts: a last batch of one image would leave batch norm nothing to normalise by
        for rows in torch.randperm(len(images), generator=rng).to(images.device).tensor_split(parts):
            seen = shifted(images[rows], rng).contiguous(memory_format=layout)
            with mixed(images.device.type, amp):
                outputs = net(seen)
            loss = F.cross_entropy(outputs.float(), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


def shifted(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flip (one time in two) and roll a whole batch by up to 1/8 of each side, cyclically; differentiable."""
    h, w = images.shape[2:]
    dy, dx = (int(torch.randint(-(side // 8), side // 8 + 1, (), generator=rng)) for side in (h, w))
    if torch.rand((), generator=rng) < 0.5:
        images = images.flip(3)
    return images.roll((dy, dx), (2, 3))
