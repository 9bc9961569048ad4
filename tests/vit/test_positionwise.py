from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vit_helpers import SMALL, images8

from ppbench.errors import UserError
from ppbench.model import Model, make_network
from ppbench.seeding import generator, seeded
from ppbench.vit.positionwise import KeyedProjection, halves, keyed_vit, split_kernel

KWARGS = {**SMALL, "img_size": [8, 12], "num_classes": 5}
BASE = "timm:vit_tiny_patch16_224"
BOTH = pytest.mark.parametrize(("positions", "nibbles"), [(False, False), (True, False), (False, True), (True, True)])


@BOTH
def test_it_starts_as_the_plain_vit_drawn_from_the_same_seed(positions: bool, nibbles: bool) -> None:
    with seeded(3):
        plain = make_network(BASE, KWARGS).eval()
    with seeded(3):
        keyed = keyed_vit(BASE, KWARGS, positions, nibbles).eval()
    images = images8(4, (3, 8, 12)) * 2 - 1
    torch.testing.assert_close(keyed(images), plain(images), atol=1e-6, rtol=0)


@BOTH
def test_the_projection_agrees_with_loops(positions: bool, nibbles: bool) -> None:
    conv = nn.Conv2d(3, 7, 4, 4)
    keyed = KeyedProjection(conv, (2, 3), positions=positions, nibbles=nibbles)
    nn.init.normal_(keyed.weight)
    levels = torch.randint(256, (2, 3, 8, 12), generator=generator(0))
    parts = torch.cat([levels // 16, levels % 16], 1) / 7.5 - 1 if nibbles else levels / 127.5 - 1
    out = keyed(levels / 127.5 - 1)
    assert out.shape == (2, 7, 2, 3)
    for n, row, column in [(0, 0, 0), (1, 1, 2), (0, 1, 0), (1, 0, 1)]:
        patch = parts[n, :, 4 * row:4 * row + 4, 4 * column:4 * column + 4].flatten()
        weight = keyed.weight[3 * row + column] if positions else keyed.weight.flatten(1)
        expected: Tensor = weight @ patch + conv.bias  # type: ignore[operator]
        torch.testing.assert_close(out[n, :, row, column], expected, atol=1e-4, rtol=0)


def test_every_8_bit_value_is_split_into_its_halves() -> None:
    levels = torch.arange(256)
    for images in (levels / 255 * 2 - 1, levels.float() / 255 * 2 - 1, levels / 127.5 - 1):
        high, low = halves(images.float().reshape(1, 1, 16, 16))[0]
        torch.testing.assert_close((high.flatten() + 1) * 7.5, levels.float() // 16, atol=1e-4, rtol=0)
        torch.testing.assert_close((low.flatten() + 1) * 7.5, levels.float() % 16, atol=1e-4, rtol=0)


def test_a_split_kernel_computes_the_same_of_the_halves() -> None:
    kernel = torch.randn(5, 3, 4, 4, generator=generator(0), dtype=torch.float64)
    images = images8(6, (3, 4, 4)).double() * 2 - 1
    same = torch.einsum("nchw,dchw->nd", halves(images), split_kernel(kernel))
    torch.testing.assert_close(same, torch.einsum("nchw,dchw->nd", images, kernel), atol=1e-12, rtol=0)


def test_the_halves_leave_the_gradient_of_the_plain_vit() -> None:
    """For one who looks for an image by its gradient; a staircase would have none."""
    conv = nn.Conv2d(3, 7, 4, 4)
    images = (images8(2, (3, 8, 12)) * 2 - 1).requires_grad_()
    found = [torch.autograd.grad(net(images).square().sum(), images)[0]
             for net in (conv, KeyedProjection(conv, (2, 3), positions=True, nibbles=True))]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@BOTH
def test_it_keeps_what_users_of_timm_look_for(positions: bool, nibbles: bool) -> None:
    net: Any = keyed_vit(BASE, KWARGS, positions, nibbles)
    assert net.patch_embed.patch_size == (4, 4)
    assert net.patch_embed.grid_size == (2, 3)
    assert net.patch_embed.num_patches == 6
    assert net.patch_embed.proj.in_channels == 3
    assert net.forward_features(torch.rand(1, 3, 8, 12)).shape == (1, 7, 32)
    channels = 6 if nibbles else 3
    assert net.patch_embed.proj.weight.shape == ((6, 32, channels * 16) if positions else (32, channels, 4, 4))


@BOTH
def test_it_is_a_factory_of_models(positions: bool, nibbles: bool) -> None:
    model = Model("ppbench.vit.positionwise:keyed_vit",
                  {"base": BASE, "kwargs": KWARGS, "positions": positions, "nibbles": nibbles})
    net = model.build().eval()
    images = images8(2, (3, 8, 12))
    assert torch.equal(model.with_state(net).build().eval()(images), net(images))


def test_a_projection_without_bias_stays_without() -> None:
    net: Any = keyed_vit(BASE, {**KWARGS, "pre_norm": True}, positions=True)
    assert net.patch_embed.proj.bias is None
    assert net(torch.rand(2, 3, 8, 12)).shape == (2, 5)


@pytest.mark.parametrize("base", ["timm:resnet18", "timm:vit_tiny_r_s16_p8_224"])
def test_networks_without_patch_projection_are_refused(base: str) -> None:
    with pytest.raises(UserError, match="no patch projection"):
        keyed_vit(base, {})
