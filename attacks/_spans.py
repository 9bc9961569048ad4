"""What a convolution's gradient tells of its inputs: every patch that it saw lies in the span of the gradient's rows.

The gradient of weights `[out, patch]` is a sum over places, of what comes back there times the patch that lies there.
With as many channels as places, or few less, its rows span (nearly) all patches. As patches overlap, few inputs have
all of theirs in such a span: those that have are the lowest eigenvectors of a matrix that follows from the gradient
alone. Often there is one, and it is the input; where zeros lie beside it on two sides only (a stride of 2 on an even
side), it may as well be shifted towards the others. Petrov et al. 2024, "DAGER" (arXiv 2405.15586), find tokens of text
by the spans of linear layers.
"""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import fold

from ppbench.attacks._heard import heard
from ppbench.codec import Tensors
from ppbench.seeding import generator

LAYERS = 2  # the first ones that tell something: of those behind them, an image's details are harder to follow back
DIRECTIONS = 128  # at most, in which inputs may lie
LIVE = 0.85  # of the places, at least so many dimensions that gradients span
NIL = 1e-5  # singular value, beside the first, of a row that adds nothing
DOUBT = 2e-3  # share of its patches' squares that an input may have outside the span, and be half believed
VALUES, COEFFICIENTS, TAPS = 2**16, 10_240, 2**25  # of an input, its patches, pairs of taps: bounds time and memory
RIDGE, ROUNDS = 1e-4, 6  # of the inverse iteration


@dataclass(frozen=True)
class Span:
    """Where the inputs of a layer may lie.

    Attributes:
        layer: its name.
        directions: `[problems, values, directions]`, orthogonal, as long as they are believed; 0 = nothing is told.
        covered: `[values]`, the root of the number of patches that hold a value.
    """

    layer: str
    directions: Tensor
    covered: Tensor

    def __getitem__(self, rows: Tensor) -> "Span":
        return replace(self, directions=self.directions[rows])

    def inside(self, inputs: Tensor) -> Tensor:
        """Return the share `[problems]` of the squares of inputs `[problems, c, h, w]` that lies in the span."""
        values = inputs.flatten(1) * self.covered.to(inputs)
        parts = torch.einsum("nv,nvd->nd", values, self.directions.to(inputs))
        return parts.square().sum(1) / values.square().sum(1).clamp(min=torch.finfo(values.dtype).tiny)


@dataclass(frozen=True)
class Places:
    """Where a convolution looks at its inputs.

    Attributes:
        layer: the convolution.
        shape: `[c, h, w]` of its input.
        index: `[places, taps]`, which pixel of the input a tap of the kernel lies on; -1 = beside it.
    """

    layer: nn.Conv2d
    shape: torch.Size
    index: Tensor

    @property
    def covering(self) -> Tensor:
        """How many patches hold a pixel, `[h * w]`."""
        inside = self.index[self.index >= 0]
        return torch.bincount(inside, minlength=self.shape[1] * self.shape[2]).clamp(min=1)

    def spread(self, patches: Tensor) -> Tensor:
        """Add patches `[n, places, c * taps]` up to inputs `[n, c, h, w]`."""
        one = self.layer
        return fold(patches.mT, self.shape[1:], one.kernel_size, one.dilation, int(one.padding[0]), one.stride)


def spans_of(net: nn.Module, given: Tensors, some: Tensor) -> tuple[Span, ...]:
    """Return what the gradients of single images tell of the inputs of the first layers that tell anything.

    Args:
        net: the network.
        given: parameter name -> `[problems, *parameter shape]`.
        some: `[1, c, h, w]`, an image like those behind the gradients.
    """
    found: list[Span] = []
    for name, places in _looked_at(net, some).items():
        rows = given.get(f"{name}.weight")
        if rows is not None and len(found) < LAYERS and _tells(places):
            parts = [_directions(one.flatten(1), places) for one in rows]
            if any(part.any() for part in parts):
                found.append(Span(name, torch.stack(parts), places.covering.sqrt().repeat(places.shape[0])))
    return tuple(found)


def _looked_at(net: nn.Module, some: Tensor) -> dict[str, Places]:
    """Return where convolutions that are used once look at their inputs, in the order in which they do."""
    layers = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        seen = heard(net, layers, some)[1]
    calls = Counter(name for name, _ in seen)
    return {name: _places(layers[name], inputs.shape[1:]) for name, inputs in seen
            if calls[name] == 1 and _plain(layers[name])}


def _plain(layer: nn.Conv2d) -> bool:
    """Say whether a convolution looks at all channels alike, with zeros beside the image, square all in all."""
    sides = [layer.kernel_size, layer.stride, layer.dilation, layer.padding]
    alike = all(not isinstance(one, str) and one[0] == one[1] for one in sides)
    return alike and layer.groups == 1 and layer.padding_mode == "zeros"


def _places(layer: nn.Conv2d, shape: torch.Size) -> Places:
    height, width = shape[1:]
    down, across = (_taps(layer, side) for side in (height, width))
    index = down[:, None, :, None] * width + across[None, :, None, :]
    beside = (down < 0)[:, None, :, None] | (across < 0)[None, :, None, :]
    index = index.masked_fill(beside, -1).flatten(2).flatten(0, 1)
    return Places(layer, shape, index.to(layer.weight.device))


def _taps(layer: nn.Conv2d, side: int) -> Tensor:
    """Return where the taps of a kernel lie along one side, `[steps, taps]`; -1 = beside."""
    reach = layer.dilation[0] * (layer.kernel_size[0] - 1)
    first = torch.arange(0, side + 2 * int(layer.padding[0]) - reach, layer.stride[0]) - int(layer.padding[0])
    found = first[:, None] + layer.dilation[0] * torch.arange(layer.kernel_size[0])
    return found.masked_fill(found >= side, -1).clamp(min=-1)


def _tells(places: Places) -> bool:
    """Say whether rows can span all patches and yet not everything, at a cost that is bearable."""
    count, patch = len(places.index), places.layer.weight[0].numel()
    channels = places.layer.out_channels
    overlap = int(places.covering.max()) > 1
    bearable = (places.shape.numel() <= VALUES and count**2 <= COEFFICIENTS
                and (count * places.index.shape[1]) ** 2 <= TAPS)
    return LIVE * count <= channels and count < patch and overlap and bearable


def _directions(rows: Tensor, places: Places) -> Tensor:
    """Return the directions `[values, DIRECTIONS]` in which an input lies, by its layer's gradient `[out, patch]`."""
    count = len(places.index)
    none = rows.new_zeros(places.shape.numel(), DIRECTIONS)
    _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    basis = basis[:count][sizes[:count] > NIL * sizes[0]].to(rows.dtype)
    if len(basis) < LIVE * count or (sizes[count:] > NIL * sizes[0]).any():
        return none  # too few patches were seen, or more than there are places: noise was added
    overlaps = _overlaps(basis, places)
    values, found = _highest(overlaps, min(DIRECTIONS, len(overlaps)))
    outside = (1 - values).clamp(min=0)
    if outside[0] < DOUBT / 10 and len(values) < len(overlaps):
        return none  # there are more such directions than are looked for
    patches = (found.T.unflatten(1, (count, -1)) @ basis) / values.clamp(min=NIL).sqrt()[:, None, None]
    images = places.spread(patches).flatten(2) / places.covering.sqrt()
    none[:, : len(images)] = (images.flatten(1) * (DOUBT / (outside + DOUBT)).sqrt()[:, None]).T
    return none


def _overlaps(basis: Tensor, places: Places) -> Tensor:
    """Return the products `[places * rank]` squared of patches' coefficients, where patches lie on the same pixels.

    Args:
        basis: `[rank, patch]`, orthonormal.
        places: where patches lie.
    """
    count, taps = places.index.shape
    by_tap = basis.unflatten(1, (-1, taps)).permute(2, 0, 1)  # taps, rank, channels
    products = by_tap[:, None] @ by_tap.mT[None]  # taps, taps, rank, rank
    found = basis.new_zeros(count, count, len(basis), len(basis))
    shares = 1 / places.covering.to(basis.dtype)
    for tap in range(taps):
        for other in range(taps):
            here, there = places.index[:, tap], places.index[:, other]
            first, second = torch.nonzero((here[:, None] == there) & (here >= 0)[:, None], as_tuple=True)
            found[first, second] += shares[here[first], None, None] * products[tap, other]
    return found.transpose(1, 2).flatten(2).flatten(0, 1)


def _highest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest eigenvalues `[count]` of a symmetric matrix of norm 1, and their vectors `[n, count]`.

    By inverse iteration from just above 1, near which many lie.
    """
    shifted = -matrix
    shifted.diagonal().add_(1 + RIDGE)
    factor = torch.linalg.cholesky(shifted)
    found = torch.randn(len(matrix), count, generator=generator(0)).to(matrix)
    for _ in range(ROUNDS):
        found = torch.linalg.qr(torch.cholesky_solve(found, factor))[0]
    values, turned = torch.linalg.eigh(found.T @ matrix @ found)
    return values, found @ turned
