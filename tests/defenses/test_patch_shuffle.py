import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from ppbench.defenses.patch_shuffle import PatchShuffle
from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.seeding import generator, seeded

VIT = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}


def shuffled(images: Tensor, patch: int, seed: int) -> tuple[Tensor, Tensor]:
    defense, rng = PatchShuffle(patch=patch), generator(seed)
    n, c, h, w = images.shape
    key = defense.keys(n, (c, h, w), rng)
    return defense.encrypt(images, key, rng), key["order"]


def by_loops(image: Tensor, order: list[int], patch: int) -> Tensor:
    """Move one patch after the other: place i gets patch order[i], both counted row by row."""
    out = torch.zeros_like(image)
    columns = image.shape[2] // patch
    for place, origin in enumerate(order):
        (y, x), (v, u) = divmod(place, columns), divmod(origin, columns)
        for dy in range(patch):
            for dx in range(patch):
                out[:, y * patch + dy, x * patch + dx] = image[:, v * patch + dy, u * patch + dx]
    return out


@settings(deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4),
       st.integers(0, 2**32))
def test_it_agrees_with_a_slow_reference(n: int, c: int, rows: int, cols: int, patch: int, seed: int) -> None:
    images = torch.rand(n, c, rows * patch, cols * patch, generator=generator(seed))
    out, order = shuffled(images, patch, seed)
    for i in range(n):
        assert torch.equal(out[i], by_loops(images[i], order[i].tolist(), patch))


def test_all_orders_of_an_images_patches_are_equally_likely() -> None:
    image = torch.arange(3.0).repeat_interleave(2).expand(6000, 1, 2, 6)
    out, _ = shuffled(image.contiguous(), 2, seed=0)
    seen = out[:, 0, 0, ::2] @ torch.tensor([9.0, 3.0, 1.0])
    counts = seen.unique(return_counts=True)[1]
    assert len(counts) == 6
    assert chisquare(counts.numpy()).pvalue > 0.01


def vit_pair(defense: PatchShuffle, adapted: bool = True) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A small ViT with weights that matter, images, and the same images with their patches shuffled."""
    model = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 5)
    if adapted:
        model = defense.adapt(model, None)
    with seeded(0):
        net = model.build().eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.5)  # at timm's scale of 0.02 even an order that counts hides
    images = torch.rand(4, 3, 32, 32, generator=generator(1))
    return net, images, shuffled(images, defense.patch, 2)[0]


@pytest.mark.parametrize("patch", [4, 8])
@pytest.mark.parametrize("rpe", [True, False])
@torch.no_grad()
def test_the_adapted_vit_does_not_see_the_order_of_the_patches(patch: int, rpe: bool) -> None:
    """Nor that of larger patches, which it sees as several that move together."""
    net, images, moved = vit_pair(PatchShuffle(patch=patch, rpe=rpe))
    assert not torch.equal(images, moved)
    torch.testing.assert_close(net(moved), net(images), atol=1e-4, rtol=0)
    assert (net(images)[0] - net(images)[1]).abs().max() > 1e-3  # it does see the images


@pytest.mark.parametrize("rpe", [True, False])
@torch.no_grad()
def test_with_positions_the_vit_does_see_the_order(rpe: bool) -> None:
    net, images, moved = vit_pair(PatchShuffle(positions=True, rpe=rpe))
    assert (net(moved) - net(images)).abs().max() > 1e-2


@torch.no_grad()
def test_the_vit_as_it_comes_does_see_the_order() -> None:
    net, images, moved = vit_pair(PatchShuffle(), adapted=False)
    assert (net(moved) - net(images)).abs().max() > 1e-2


def test_the_reference_encoding_is_there_unless_switched_off() -> None:
    plain = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 5)
    names = {rpe: PatchShuffle(rpe=rpe).adapt(plain, None).build().state_dict() for rpe in (True, False)}
    assert len(names[True].keys() - names[False].keys()) == 5
    assert any("reference" in name for name in names[True])
    assert PatchShuffle(positions=True, rpe=False).adapt(plain, None) == plain


@pytest.mark.parametrize("rpe", [True, False])
def test_given_weights_are_taken_over(rpe: bool) -> None:
    plain = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 5)
    with seeded(0):
        plain = plain.with_state(plain.build())
    state = PatchShuffle(rpe=rpe).adapt(plain, None).state
    assert state is not None
    assert plain.state is not None
    assert plain.state.keys() - state.keys() == {"net.pos_embed"}
    assert all(torch.equal(state[name], value) for name, value in plain.state.items() if name != "net.pos_embed")


@pytest.mark.parametrize(("patch", "side"), [(4, 8), (2, 4), (8, 16)])
def test_a_vit_whose_patches_hold_pieces_of_several_is_refused(patch: int, side: int) -> None:
    model = for_images("timm:vit_tiny_patch16_224", {**VIT, "patch_size": side}, (3, 32, 32), 5)
    with pytest.raises(UserError, match=f"patch_size = {patch} .* patch = {side}"):
        PatchShuffle(patch=patch).adapt(model, None)
    PatchShuffle(patch=patch, positions=True).adapt(model, None)


def test_how_the_victim_is_built_changes_neither_key_nor_release() -> None:
    assert PatchShuffle.victim_params == {"positions", "rpe"}
    images = torch.rand(2, 3, 8, 8, generator=generator(0))
    found = []
    for defense in (PatchShuffle(), PatchShuffle(positions=True, rpe=False)):
        rng = generator(1)
        found.append(defense.encrypt(images, defense.keys(2, (3, 8, 8), rng), rng))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("factory", ["torchvision:resnet18", "timm:resnet18", "ppbench.nets:convnet"])
def test_other_networks_are_left_as_they_are(factory: str) -> None:
    model = Model(factory, {"num_classes": 3})
    assert PatchShuffle().adapt(model, None) == model
