"""The networks of a GAN: any shape, every level, and what augmentation does."""

import itertools

import pytest
import torch
from torch import Tensor

from ppbench.attacks._gan import augmentation
from ppbench.attacks._gan_nets import LARGEST, Design, DiscriminatorNet, EncoderNet, GeneratorNet, canvas
from ppbench.data import Shape
from ppbench.seeding import generator, seeded


@pytest.mark.parametrize(("shape", "size", "doublings"), [
    ((3, 32, 32), (32, 32), 3), ((1, 28, 28), (28, 28), 2), ((3, 16, 40), (16, 40), 2), ((3, 30, 45), (32, 48), 2),
    ((1, 1, 5), (2, 6), 1), ((3, 11, 13), (12, 14), 1), ((3, 218, 178), (64, 56), 3), ((3, 224, 224), (64, 64), 4)])
def test_canvas_covers_the_image_and_no_more_than_it_must(shape: Shape, size: tuple[int, int], doublings: int) -> None:
    found = canvas(shape)
    assert found.doublings == doublings
    assert found.size == size
    assert max(found.inner) <= LARGEST
    assert all(0 <= a - b < 2**doublings for a, b in zip(found.size, found.inner, strict=True))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 16, 40), (3, 11, 13), (1, 7, 9), (3, 70, 90)])
def test_networks_fit_any_shape(shape: Shape) -> None:
    design = Design(shape, 3, 8, 4)
    with seeded(0):
        nets = GeneratorNet(design), EncoderNet(design), DiscriminatorNet(design)
    images = nets[0](torch.randn(2, 8, generator=generator(0)))
    assert images.shape == (2, *shape)
    assert images.min() >= 0
    assert images.max() <= 1
    assert [part.shape for part in nets[1](images)] == [(2, 8), (2, 8)]
    assert nets[2](images, torch.tensor([0, 3])).shape == (2,)


def test_what_the_canvas_adds_it_takes_away() -> None:
    images = torch.rand(2, 3, 30, 45, generator=generator(0))
    assert canvas((3, 30, 45)).lay(images).shape == (2, 3, 32, 48)
    assert torch.equal(canvas((3, 30, 45)).fit(canvas((3, 30, 45)).lay(images)), images)


def test_entering_the_generator_at_any_level_gives_the_same_images() -> None:
    with seeded(0):
        net = GeneratorNet(Design((3, 30, 32), 2, 8, 4))
    codes = torch.randn(3, 8, generator=generator(0))
    values: tuple[Tensor, ...] = (net.enter(codes),)
    for level in range(1, net.levels):
        torch.testing.assert_close(net.finish(values, level), net(codes))
        values = net.advance(values, level)
    torch.testing.assert_close(net.finish(values, net.levels), net(codes))


def test_augmentation_is_one_per_image_and_differentiable() -> None:
    images = torch.rand(1, 3, 12, 20, generator=generator(0)).expand(6, -1, -1, -1).clone().requires_grad_()
    augment = augmentation(6, Design((3, 12, 20), 1, 4, 4), generator(1))
    seen = augment(images)
    assert seen.shape == images.shape
    assert all((a - b).abs().max() > 0.01 for a, b in itertools.combinations(seen, 2))
    torch.testing.assert_close(augment(images), seen)  # drawn once: real and generated images get the same
    seen.sum().backward()
    assert images.grad is not None
    assert all(grad.any() for grad in images.grad)
