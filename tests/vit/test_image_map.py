from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppbench.errors import UserError
from ppbench.seeding import generator
from ppbench.vit.image_map import ImageMap, image_map

SIDES = st.integers(1, 6)


def drawn(shape: tuple[int, int, int], seed: int) -> ImageMap:
    rng, size = generator(seed), shape[0] * shape[1] * shape[2]
    return ImageMap(torch.randperm(size, generator=rng).reshape(shape),
                    torch.randint(2, shape, generator=rng).bool())


@settings(deadline=None)
@given(st.tuples(st.sampled_from([1, 3, 6]), SIDES, SIDES), st.integers(0, 2**32))
def test_any_signed_permutation_is_read_off(shape: tuple[int, int, int], seed: int) -> None:
    truth = drawn(shape, seed)
    found = image_map(truth, shape)
    assert torch.equal(found.source, truth.source)
    assert torch.equal(found.negative, truth.negative)


def test_it_is_read_off_at_224_pixels() -> None:
    truth = drawn((6, 224, 224), 0)
    assert torch.equal(image_map(truth, (6, 224, 224)).source, truth.source)


def test_a_map_by_hand() -> None:
    cipher = ImageMap(torch.tensor([[[1, 0, 2]]]), torch.tensor([[[False, True, False]]]))
    out = cipher(torch.tensor([[[[0.1, 0.2, 0.3]]]]))
    torch.testing.assert_close(out, torch.tensor([[[[0.2, 0.9, 0.3]]]]))


@pytest.mark.parametrize("cipher", [
    lambda x: x * 0.5, lambda x: x * 0, lambda x: x * 0 + 0.7, lambda x: x.square(), lambda x: x[:, :, ::2],
    lambda x: x.flip(2).clamp(0.1, 1), lambda x: (x * 255).round() / 255, lambda x: x.roll(1, 2) * 0.5 + x * 0.5,
    lambda x: torch.cat([x[:, :, :1], x[:, :, :-1]], 2),  # the first row twice, the last lost
    lambda x: x.flatten(1).sort().values.reshape(x.shape),  # a permutation, but each image's own
    lambda x: x + 1e-3 * torch.rand(x.shape, generator=generator(0)),
], ids=["scaled", "black", "grey", "squared", "smaller", "clipped", "rounded", "blurred", "repeated", "sorted",
        "noisy"])
def test_what_is_no_signed_permutation_is_refused(cipher: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UserError, match="does more than move"):
        image_map(cipher, (3, 8, 8))
