from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppbench.data import Images
from ppbench.defenses.mixup import Mixup
from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.seeding import generator, seeded

EVEN = st.sampled_from([2, 4, 6, 8])
FEW = st.integers(1, 3)


def eighth_bit(n: int, c: int, h: int, w: int, seed: int) -> Tensor:
    """Images of multiples of 1/256: their sums and quarters are exact in float32."""
    return torch.randint(257, (n, c, h, w), generator=generator(seed)).float() / 256


def mixed(images: Tensor, patch: int) -> Tensor:
    return Mixup(patch=patch).encrypt(images, {}, generator(0))


def by_loops(image: Tensor, patch: int) -> Tensor:
    c, h, w = image.shape
    half = patch // 2
    out = torch.zeros(c, h // 2, w // 2)
    for top in range(0, h, patch):
        for left in range(0, w, patch):
            for y in range(half):
                for x in range(half):
                    quarters = [image[:, top + y + dy, left + x + dx] for dy in (0, half) for dx in (0, half)]
                    out[:, top // 2 + y, left // 2 + x] = sum(quarters) / 4
    return out


@settings(deadline=None)
@given(FEW, st.sampled_from([1, 3]), FEW, FEW, EVEN, st.integers(0, 2**32))
def test_it_agrees_with_a_slow_reference(n: int, c: int, rows: int, cols: int, patch: int, seed: int) -> None:
    images = eighth_bit(n, c, rows * patch, cols * patch, seed)
    out = mixed(images, patch)
    assert out.shape == (n, c, rows * patch // 2, cols * patch // 2)
    for i in range(n):
        assert torch.equal(out[i], by_loops(images[i], patch))


@settings(deadline=None)
@given(FEW, FEW, FEW, EVEN, st.integers(0, 2**32))
def test_the_mean_of_every_patch_survives_exactly(n: int, rows: int, cols: int, patch: int, seed: int) -> None:
    images = eighth_bit(n, 3, rows * patch, cols * patch, seed).double()
    before = images.unfold(2, patch, patch).unfold(3, patch, patch).sum((4, 5)) / patch**2
    half = patch // 2
    after = mixed(images.float(), patch).double().unfold(2, half, half).unfold(3, half, half).sum((4, 5)) / half**2
    torch.testing.assert_close(after, before, atol=1e-15, rtol=0)


@settings(deadline=None)
@given(EVEN, st.integers(0, 2**32))
def test_the_order_of_a_patchs_quarters_leaves_no_trace(patch: int, seed: int) -> None:
    image = eighth_bit(1, 3, patch, patch, seed)
    half = patch // 2
    turned = image.roll((half, half), (2, 3))
    assert torch.equal(mixed(turned, patch), mixed(image, patch))


def test_release_query_and_inverse_have_their_shapes() -> None:
    private = Images(eighth_bit(3, 3, 16, 24, 0), torch.tensor([0, 1, 0]), torch.arange(3))
    defense = Mixup(patch=8)
    assert defense.key_scopes == ()
    release = defense.protect(private, None, generator(0))
    assert release.shape == (3, 8, 12)
    assert torch.equal(release.labels, private.labels)
    assert torch.equal(defense.query(private.pixels, None, generator(1)), release.images)
    found = defense.invert(release, None, private.shape)
    assert found.shape == private.pixels.shape
    assert found.min() >= 0
    assert found.max() <= 1


def test_flat_images_pass_unharmed() -> None:
    release = Mixup().protect(Images(torch.full((2, 1, 8, 8), 0.3), torch.zeros(2), torch.arange(2)), None,
                              generator(0))
    torch.testing.assert_close(Mixup().invert(release, None, (1, 8, 8)), torch.full((2, 1, 8, 8), 0.3))


@pytest.mark.parametrize(("patch", "why"), [(3, "even side"), (1, "even side"), (5, "does not divide"),
                                            (0, "does not divide"), (24, "does not divide")])
def test_patches_that_cannot_be_mixed_are_refused(patch: int, why: str) -> None:
    with pytest.raises(UserError, match=why):
        Mixup(patch=patch).check((3, 12, 12))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 24)])
@torch.no_grad()
def test_the_adapted_vit_takes_the_released_shape_with_as_many_tokens(shape: Any) -> None:
    plain = for_images("timm:vit_tiny_patch16_224",
                       {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}, shape, 5)
    with seeded(0):
        before, after = plain.build(), Mixup(patch=4).adapt(plain, None).build()
    images = torch.rand(2, *shape, generator=generator(0))
    assert after(mixed(images, 4)).shape == (2, 5)
    tokens = [net.net.patch_embed.num_patches for net in (before, after)]  # type: ignore[union-attr]
    assert tokens[0] == tokens[1] == shape[1] * shape[2] // 16


VIT = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}


def test_given_weights_are_taken_over_and_the_projection_summed_over_the_sub_patches() -> None:
    plain, kernel = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 5), "net.patch_embed.proj.weight"
    with seeded(0):
        plain = plain.with_state(plain.build())
    assert plain.state is not None
    adapted = Mixup().adapt(plain, None)
    state = adapted.build().state_dict()  # the shapes fit
    assert adapted.state is not None
    assert state.keys() == plain.state.keys()
    assert all(torch.equal(state[name], value) for name, value in plain.state.items() if name != kernel)
    old = plain.state[kernel]
    quarters = old[..., :2, :2] + old[..., :2, 2:] + old[..., 2:, :2] + old[..., 2:, 2:]
    torch.testing.assert_close(state[kernel], quarters)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("rpe", [True, False])
@pytest.mark.parametrize("positions", [True, False])
def test_positions_and_the_reference_encoding_are_options(positions: bool, rpe: bool, given: bool) -> None:
    plain = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 5)
    with seeded(0):
        plain = plain.with_state(plain.build()) if given else plain
        adapted = Mixup(positions=positions, rpe=rpe).adapt(plain, None)
        net = adapted.build()
    assert (adapted.state is not None) == given
    assert ("net.pos_embed" in net.state_dict()) == positions
    assert any("reference" in name for name in net.state_dict()) == rpe
    assert net(mixed(torch.rand(2, 3, 32, 32), 4)).shape == (2, 5)


@pytest.mark.parametrize(("patch", "side"), [(8, 4), (4, 2), (4, 6)])
def test_a_vit_whose_patches_hold_no_whole_mixtures_is_refused(patch: int, side: int) -> None:
    model = for_images("timm:vit_tiny_patch16_224", {**VIT, "patch_size": side}, (3, 48, 48), 5)
    with pytest.raises(UserError, match=f"patch_size = {patch} .* patch = {side}"):
        Mixup(patch=patch).adapt(model, None)


@torch.no_grad()
def test_a_vit_whose_patches_hold_several_mixtures_is_served() -> None:
    model = for_images("timm:vit_tiny_patch16_224", {**VIT, "patch_size": 8}, (3, 32, 32), 5)
    assert Mixup(patch=4).adapt(model, None).build()(mixed(torch.rand(2, 3, 32, 32), 4)).shape == (2, 5)


def test_the_defaults_are_the_papers() -> None:
    assert (Mixup().positions, Mixup().rpe) == (True, False)
    assert Mixup.victim_params == {"positions", "rpe"}


@pytest.mark.parametrize("factory", ["torchvision:resnet18", "timm:resnet18", "ppbench.nets:convnet"])
def test_other_networks_are_left_as_they_are(factory: str) -> None:
    model = Model(factory, {"num_classes": 3})
    assert Mixup().adapt(model, None) == model
