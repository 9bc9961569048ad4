"""Ways to hide images in a network while it is trained, and to read them again (Song et al. 2017)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ppbench.attacks._payload import carriers, flatten, from_bits, hide, reveal, to_bits, unflatten
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import resize
from ppbench.seeding import generator
from ppbench.view import View

DEPTH = 4  # highest bits of a value that are hidden where bits are dear: half the capacity buys nothing visible
CELL = 4  # side in pixels of the cells of a synthetic input


class Encoding(ABC):
    """A way to hide images `[n, c, h, w]`; what it does not act on, it leaves as it is."""

    @abstractmethod
    def fits(self, values: int, weights: int, classes: int) -> int:
        """Return how many images of so many values a network of so many weights and classes holds."""

    def penalty(self, images: Tensor, net: nn.Module) -> Callable[[nn.Module], Tensor] | None:
        """Return the loss term that draws the weights towards the images; None = there is none."""
        return None

    def more(self, images: Tensor, shape: Shape, classes: int) -> Images | None:
        """Return inputs of `shape` to learn beside the others, whose labels spell the images; None = none."""
        return None

    def finish(self, images: Tensor, state: Tensors) -> Tensors:
        """Write the images into trained weights."""
        return state

    @abstractmethod
    def read(self, view: View, count: int, shape: Shape) -> Tensor:
        """Read the first images `[count, *shape]` from the view's model."""


@dataclass(frozen=True)
class LowBits(Encoding):
    """Overwrite the `bits` lowest mantissa bits of the weights, after training."""

    bits: int

    def fits(self, values: int, weights: int, classes: int) -> int:
        """Eight bits a value."""
        return weights * self.bits // (8 * values)

    def finish(self, images: Tensor, state: Tensors) -> Tensors:
        """Write all eight bits of every value."""
        names = carriers(state)
        return unflatten(hide(flatten(state, names), to_bits(images).flatten(), self.bits), state, names)

    def read(self, view: View, count: int, shape: Shape) -> Tensor:
        """Bit by bit."""
        payload = reveal(_trained(view), count * prod(shape) * 8, self.bits)
        return from_bits(payload.reshape(count, -1), shape)


@dataclass(frozen=True)
class Signs(Encoding):
    """Draw weights whose sign is wrong towards zero, with a `force`; a bit a weight, or `repeats` weights."""

    force: float
    repeats: int = 1

    def fits(self, values: int, weights: int, classes: int) -> int:
        """A weight a bit."""
        return weights // (DEPTH * values * self.repeats)

    def penalty(self, images: Tensor, net: nn.Module) -> Callable[[nn.Module], Tensor]:
        """Sum the wrong weights' sizes."""
        names = carriers(net.state_dict())
        signs = (to_bits(images, DEPTH).flatten().float() * 2 - 1).repeat(self.repeats)
        return lambda net: self.force * (-signs.to(_home(net)) * _weights(net, names, len(signs))).relu().sum()

    def read(self, view: View, count: int, shape: Shape) -> Tensor:
        """A weight above zero is a 1; of several that hold one bit the mean decides, so that sure ones weigh more."""
        bits = (_averaged(view, count * prod(shape) * DEPTH, self.repeats) > 0).int()
        return from_bits(bits.reshape(count, -1), shape, DEPTH)


@dataclass(frozen=True)
class Correlated(Encoding):
    """Draw weights towards a linear function of the values, with a `force`; a value a weight, or `repeats` weights."""

    force: float
    repeats: int = 1

    def fits(self, values: int, weights: int, classes: int) -> int:
        """A weight a value."""
        return weights // (values * self.repeats)

    def penalty(self, images: Tensor, net: nn.Module) -> Callable[[nn.Module], Tensor]:
        """Return the sum of the products, which is the correlation times their number."""
        names, values = carriers(net.state_dict()), _standardised(images.flatten()).repeat(self.repeats)
        return lambda net: -self.force * (values.to(_home(net))
                                          * _standardised(_weights(net, names, len(values)))).sum()

    def read(self, view: View, count: int, shape: Shape) -> Tensor:
        """Give the weights the mean and the contrast of public images."""
        public = resize(view.public.pixels, shape)
        found = _averaged(view, count * prod(shape), self.repeats)
        scaled = _standardised(found) * public.std() + public.mean()
        return scaled.reshape(count, *shape).clamp(0, 1)


@dataclass(frozen=True)
class Labels(Encoding):
    """Let the network learn so many synthetic `inputs` by heart, whose labels spell the images (capacity abuse)."""

    inputs: int

    def fits(self, values: int, weights: int, classes: int) -> int:
        """As many bits an input as a label has."""
        return self.inputs * bits_of_label(classes) // (DEPTH * values)

    def more(self, images: Tensor, shape: Shape, classes: int) -> Images:
        """Return as many inputs as the images need."""
        width = bits_of_label(classes)
        bits = to_bits(images, DEPTH).flatten()
        bits = torch.cat([bits, bits.new_zeros(-len(bits) % width)]).reshape(-1, width)
        labels = (bits * _places(width)).sum(1)
        return Images(synthetic(len(labels), shape), labels, torch.arange(len(labels)))

    def read(self, view: View, count: int, shape: Shape) -> Tensor:
        """Ask the network for the inputs' labels."""
        width = bits_of_label(view.classes)
        needed = count * prod(shape) * DEPTH
        net = view.model.build().eval()
        with torch.no_grad():
            asked = synthetic(-(-needed // width), view.released_shape).split(256)
            labels = torch.cat([net(some)[:, : 2**width].argmax(1) for some in asked])
        bits = labels[:, None] // _places(width) % 2
        return from_bits(bits.flatten()[:needed].reshape(count, -1), shape, DEPTH)


def bits_of_label(classes: int) -> int:
    """Return how many bits one of so many labels spells."""
    return classes.bit_length() - 1


def synthetic(count: int, shape: Shape) -> Tensor:
    """Return inputs `[count, *shape]` that encoder and decoder draw alike: cells of a few pixels, black or white.

    They are unlike photographs and unlike each other; the first ones are the same whatever the count.
    """
    channels, height, width = shape
    down, across = -(-height // CELL), -(-width // CELL)
    cells = torch.rand(count, channels, down, across, generator=generator(0)) < 0.5
    return interpolate(cells.float(), scale_factor=CELL)[..., :height, :width]


def _places(width: int) -> Tensor:
    """Return the value of every bit of a label, the highest first."""
    return 2 ** torch.arange(width - 1, -1, -1)


def _trained(view: View) -> Tensor:
    """Return the weights of a view's model that may carry something."""
    state = view.model.state
    assert state is not None
    return flatten(state, carriers(state))


def _averaged(view: View, count: int, repeats: int) -> Tensor:
    """Return `[count]` means of the weights that hold the same."""
    return _trained(view)[: count * repeats].reshape(repeats, count).mean(0)


def _home(net: nn.Module) -> torch.device:
    """Return where the victim is trained."""
    return next(net.parameters()).device


def _weights(net: nn.Module, names: list[str], count: int) -> Tensor:
    return flatten(net.state_dict(keep_vars=True), names)[:count]


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean()
    return centred / centred.square().mean().sqrt().clamp(min=1e-12)
