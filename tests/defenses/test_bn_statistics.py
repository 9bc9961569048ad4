from collections.abc import Iterator

import pytest
import torch
from bn_networks import by_hand, coloured, teacher_of
from torch import Tensor, nn

from ppbench.defenses._bn_statistics import (
    Moments,
    absolute_distance,
    bn_layers,
    group_statistics,
    relative_distance,
    running_statistics,
    tapped,
)
from ppbench.seeding import generator, seeded, threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more, and results are to the bit."""
    with threads(1):
        yield


@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_class_statistics_are_those_of_the_whole_class(chunk: int) -> None:
    private = coloured([0, 1, 2, 2, 0, 1, 2, 0, 2, 1, 2])
    net = teacher_of(private)
    found = group_statistics(net, private.pixels, private.labels, 3, chunk)
    assert len(found) == len(bn_layers(net)) == 3
    for label in range(3):
        expected = by_hand(net, private.pixels[private.labels == label])
        for layer, (mean, variance) in zip(found, expected, strict=True):
            torch.testing.assert_close(layer.mean[label].double(), mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(layer.variance[label].double(), variance, atol=1e-5, rtol=1e-5)


def test_statistics_of_a_layer_without_places() -> None:
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    images, group = torch.rand(6, 3, 2, 2, generator=generator(1)), torch.tensor([0, 0, 1, 0, 1, 0])
    (layer,) = group_statistics(net, images, group, 2)
    for label in range(2):
        ((mean, variance),) = by_hand(net, images[group == label])
        torch.testing.assert_close(layer.mean[label].double(), mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(layer.variance[label].double(), variance, atol=1e-6, rtol=1e-5)


def test_statistics_of_a_class_of_one_image() -> None:
    private = coloured([0, 0, 0, 1])
    net = teacher_of(private)
    found = group_statistics(net, private.pixels, private.labels, 2)
    for layer, (mean, variance) in zip(found, by_hand(net, private.pixels[3:]), strict=True):
        torch.testing.assert_close(layer.mean[1].double(), mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.variance[1].double(), variance, atol=1e-5, rtol=1e-5)


class Layers(nn.Module):
    """Two BN layers, one behind a convolution and one without places, so that both kinds are tapped."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.late = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.late(self.early(images).mean((2, 3)))
        return logits


def plain_moments(net: nn.Module, images: Tensor, sizes: list[int]) -> tuple[Tensor, list[list[Tensor]]]:
    """Logits, and mean and variance of each group at each layer, by torch's own differentiable operations."""
    caught: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: caught.append(args[0])) for layer in bn_layers(net)]
    logits = net(images)
    for hook in hooks:
        hook.remove()
    both = []
    for values in caught:
        axes = (0, *range(2, values.ndim))
        parts = values.split(sizes)
        both.append([torch.stack([p.mean(axes) for p in parts]),
                     torch.stack([p.var(axes, correction=0) for p in parts])])
    return logits, both


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 3]])
def test_tapped_moments_and_their_gradient(sizes: list[int], memory_format: torch.memory_format) -> None:
    """Against autograd in float64; every term of the backward pass has weight: logits, means and variances."""
    with seeded(3):
        net = Layers().double().eval().requires_grad_(False)
        for layer in bn_layers(net):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    images = torch.rand(5, 3, 6, 6, dtype=torch.float64, generator=generator(0))
    images = images.contiguous(memory_format=memory_format).requires_grad_()
    with tapped(net, sizes) as found:
        logits = net(images)
    wanted_logits, wanted = plain_moments(net, images, sizes)
    terms, wanted_terms = [logits.sin().sum()], [wanted_logits.sin().sum()]
    for now, true in zip(found, wanted, strict=True):
        for a, b in zip(now, true, strict=True):
            torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)
            terms.append((a.double() ** 3).sum())
            wanted_terms.append((b**3).sum())
    (gradient,), (true_gradient,) = (torch.autograd.grad(sum(each), images) for each in (terms, wanted_terms))
    assert true_gradient.norm() > 0.01
    torch.testing.assert_close(gradient, true_gradient, atol=1e-5, rtol=1e-4)


def test_moments_of_half_precision_values_are_taken_in_full() -> None:
    values = 1 + 0.5 * torch.rand(4, 3, 9, 9, generator=generator(0))
    half = values.bfloat16().requires_grad_()
    net = nn.Sequential(nn.BatchNorm2d(3)).eval().requires_grad_(False)
    with tapped(net, [1, 3]) as found:
        net(half)
    (moments,) = found
    assert moments.mean.dtype == moments.variance.dtype == torch.float32
    exact = half.detach().double()
    for row, part in enumerate(exact.split([1, 3])):
        torch.testing.assert_close(moments.mean[row].double(), part.mean((0, 2, 3)), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(moments.variance[row].double(), part.var((0, 2, 3), correction=0), atol=1e-6,
                                   rtol=1e-5)



def test_running_statistics_are_the_teachers_own_for_every_class() -> None:
    private = coloured([0, 1, 0, 1])
    net = teacher_of(private)
    found = running_statistics(net, private.pixels[:1], 5)
    for layer, bn in zip(found, bn_layers(net), strict=True):
        assert bn.running_mean is not None
        assert bn.running_var is not None
        assert torch.equal(layer.mean, bn.running_mean.repeat(5, 1))
        assert torch.equal(layer.variance, bn.running_var.repeat(5, 1))


def test_distance_is_a_sum_of_unsquared_norms() -> None:
    now = [Moments(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])),
           Moments(torch.tensor([[5.0], [0.0]]), torch.tensor([[1.0], [0.0]]))]
    zero = [Moments(torch.zeros_like(m.mean), torch.zeros_like(m.variance)) for m in now]
    assert absolute_distance(now, zero).tolist() == [5 + 1 + 5 + 1, 2]
    assert absolute_distance(now, now).tolist() == [0, 0]


def test_relative_distance_is_in_units_of_the_target() -> None:
    target = [Moments(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 9.0]]))]
    now = [Moments(torch.tensor([[3.0, 2.0]]), torch.tensor([[4.0, 18.0]]))]
    assert relative_distance(now * 2, target * 2).item() == pytest.approx(2 * (1 + 1) / 2, rel=1e-3)
    scaled = [[Moments(10 * m.mean, 100 * m.variance) for m in each] for each in (now, target)]
    torch.testing.assert_close(relative_distance(*scaled), relative_distance(now, target), rtol=1e-3, atol=0)
    assert relative_distance(target, target).item() == 0
