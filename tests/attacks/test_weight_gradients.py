"""Products and squares of weight gradients, against gradients that are written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from ppbench.attacks._weight_gradients import (
    DENSE,
    Geometry,
    Kernel,
    added,
    convolution_sums,
    inner,
    linear_sums,
    written_sums,
)
from ppbench.seeding import generator

geometries = st.builds(Geometry, *(st.tuples(st.integers(least, 2), st.integers(least, 2)) for least in (1, 0, 1)))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@given(geometries, st.sampled_from([(1, 1), (3, 3), (3, 2)]))
def test_a_kernel_goes_both_ways_as_torch_does(how: Geometry, size: tuple[int, int]) -> None:
    inputs, weight = drawn(0, 2, 3, 7, 6), drawn(1, 4, 3, *size)
    kernel = Kernel(weight, how)
    args = (how.stride, how.padding, how.dilation)
    outputs = kernel.convolved(inputs)
    torch.testing.assert_close(outputs, conv2d(inputs, weight, None, *args))
    grads = drawn(2, *outputs.shape)
    torch.testing.assert_close(kernel.back(grads, inputs.shape),
                               conv2d_input(inputs.shape, weight, grads, *args))  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_has_derivatives_of_any_order(stride: int) -> None:
    kernel = Kernel(drawn(1, 2, 2, 3, 3), Geometry((stride, stride), (1, 1), (1, 1)))
    inputs = drawn(0, 1, 2, 4, 4).requires_grad_()
    assert gradcheck(lambda x: kernel.convolved(x).sin(), (inputs,))
    assert gradgradcheck(lambda x: kernel.convolved(x).sin(), (inputs,))


@pytest.mark.parametrize("positions", [2, 40])  # few: nothing is written out; many: it is
@pytest.mark.parametrize("problems", [1, 3])
def test_linear_sums_are_those_of_written_gradients(positions: int, problems: int) -> None:
    inputs, grads = drawn(0, 3, positions, 6), drawn(1, 3, positions, 5)
    given_ones = drawn(2, problems, 5, 6)
    assert (positions * (6 + 5) > DENSE * 30) == (positions == 40)
    made = torch.einsum("pto,pti->poi", grads, inputs)
    product, square = linear_sums(inputs, grads, given_ones)
    torch.testing.assert_close(product, (made * given_ones).sum((1, 2)))
    torch.testing.assert_close(square, made.square().sum((1, 2)))


@pytest.mark.parametrize("side", [3, 8])  # few positions, and many
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_sums_are_those_of_written_gradients(side: int, shared: bool, stride: int) -> None:
    problems, images = 3, 2
    inputs = drawn(0, problems * images, 6, side, side).requires_grad_()
    given_ones = drawn(2, 1 if shared else problems, 8, 6, 3, 3)
    how = Geometry((stride, stride), (1, 1), (1, 1))
    kernel = Kernel(given_ones[0], how)
    outputs = kernel.forward(inputs.detach())
    grads = drawn(1, *outputs.shape).requires_grad_()

    def written(x: Tensor, d: Tensor) -> Tensor:
        shape = given_ones.shape[1:]
        return torch.stack([conv2d_weight(a, shape, b, how.stride, how.padding)  # type: ignore[arg-type]
                            for a, b in zip(x.split(images), d.split(images), strict=True)])

    made = written(inputs, grads)
    product, square = convolution_sums(inputs, grads, given_ones, kernel, problems)
    true = (made * given_ones).flatten(1).sum(1), made.square().flatten(1).sum(1)
    torch.testing.assert_close((product, square), true)
    found = torch.autograd.grad(product.sum() + square.sin().sum(), (inputs, grads))
    torch.testing.assert_close(found, torch.autograd.grad(true[0].sum() + true[1].sin().sum(), (inputs, grads)))


def test_sums_of_several_parameters_add_up() -> None:
    first, second = drawn(0, 2, 3), drawn(1, 2, 4)
    both = torch.cat([first, second], 1)
    torch.testing.assert_close(added(written_sums(first, first), written_sums(second, second)),
                               written_sums(both, both))


def test_half_precision_is_summed_at_single() -> None:
    ones = torch.ones(1, 2**12, dtype=torch.bfloat16)
    assert inner(ones, ones).item() == 2**12
    assert inner(ones, ones).dtype == torch.float32
