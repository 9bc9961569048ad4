import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from ppbench.defenses.patch_shuffle import PatchShuffle
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


def vit_pair(pos_embed: str | None) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A small ViT with weights that matter, images, and the same images with their patches shuffled."""
    model = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 5)
    if pos_embed is None:
        model = PatchShuffle(patch=4).adapt(model, None)
    with seeded(0):
        net = model.build().eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.5)  # at timm's scale of 0.02 even an order that counts hides
    images = torch.rand(4, 3, 32, 32, generator=generator(1))
    return net, images, shuffled(images, 4, 2)[0]


@torch.no_grad()
def test_the_adapted_vit_does_not_see_the_order_of_the_patches() -> None:
    net, images, moved = vit_pair(pos_embed=None)
    assert not torch.equal(images, moved)
    torch.testing.assert_close(net(moved), net(images), atol=1e-4, rtol=0)
    assert (net(images)[0] - net(images)[1]).abs().max() > 1e-3  # it does see the images


@torch.no_grad()
def test_the_vit_as_it_comes_does_see_the_order() -> None:
    net, images, moved = vit_pair(pos_embed="learn")
    assert (net(moved) - net(images)).abs().max() > 1e-2


@pytest.mark.parametrize("factory", ["torchvision:resnet18", "timm:resnet18", "ppbench.nets:convnet"])
def test_other_networks_are_left_as_they_are(factory: str) -> None:
    model = Model(factory, {"num_classes": 3})
    assert PatchShuffle().adapt(model, None) == model
