"""The encrypted ViT against the plain one, for ciphers drawn patch by patch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vit_helpers import images8, logits, vit

from ppbench.data import Shape
from ppbench.model import Model
from ppbench.seeding import generator
from ppbench.vit.absorb import PatchMap, encrypted, patch_map
from ppbench.vit.image_map import ImageMap
from ppbench.vit.shape import KERNEL, POSITIONS, VitShape, patches, vit_shape

SEEDS = st.integers(0, 2**32)


def drawn(shape: Shape, patch: tuple[int, int], alike: bool, seed: int) -> PatchMap:
    rng, count = generator(seed), (shape[1] // patch[0]) * (shape[2] // patch[1])
    rows, values = 1 if alike else count, shape[0] * patch[0] * patch[1]
    entries = torch.stack([torch.randperm(values, generator=rng) for _ in range(rows)])
    return PatchMap(torch.randperm(count, generator=rng), entries,
                    torch.randint(2, entries.shape, generator=rng).bool())


def unpatched(values: Tensor, shape: Shape, patch: tuple[int, int]) -> Tensor:
    """Join patches `[N, patches, values]` one by one."""
    out = values.new_zeros(len(values), *shape)
    columns = shape[2] // patch[1]
    for i in range(values.shape[1]):
        y, x = i // columns * patch[0], i % columns * patch[1]
        out[:, :, y:y + patch[0], x:x + patch[1]] = values[:, i].reshape(-1, shape[0], *patch)
    return out


def applied(cipher: PatchMap, images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Encrypt value by value."""
    plain = patches(images, patch)
    out = torch.zeros_like(plain)
    for i, origin in enumerate(cipher.places.tolist()):
        row = 0 if cipher.alike else i
        for j, entry in enumerate(cipher.entries[row].tolist()):
            value = plain[:, origin, entry]
            out[:, i, j] = 1 - value if cipher.negative[row, j] else value
    _, c, h, w = images.shape
    return unpatched(out, (c, h, w), patch)


def as_image_map(cipher: PatchMap, shape: Shape, patch: tuple[int, int]) -> ImageMap:
    size = shape[0] * shape[1] * shape[2]
    index = torch.arange(size, dtype=torch.float64).reshape(1, *shape) / size
    unsigned = applied(replace(cipher, negative=torch.zeros_like(cipher.negative)), index, patch)
    return ImageMap((unsigned[0] * size).round().long(), applied(cipher, torch.zeros(1, *shape), patch)[0] > 0.5)


@settings(deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 3), st.integers(1, 3),
       st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans(), SEEDS)
def test_what_happens_to_the_patches_is_read_off(c: int, rows: int, columns: int, patch: tuple[int, int], alike: bool,
                                                 seed: int) -> None:
    shape = (c, rows * patch[0], columns * patch[1])
    truth = drawn(shape, patch, alike, seed)
    found = patch_map(as_image_map(truth, shape, patch), patch)
    assert found is not None
    assert torch.equal(found.places, truth.places)
    assert torch.equal(*torch.broadcast_tensors(found.entries, truth.entries))
    assert torch.equal(*torch.broadcast_tensors(found.negative, truth.negative))
    assert found.alike or not alike


def straight(shape: Shape) -> ImageMap:
    size = shape[0] * shape[1] * shape[2]
    return ImageMap(torch.arange(size).reshape(shape), torch.zeros(shape).bool())


def test_patches_that_share_values_are_no_patch_map() -> None:
    one = straight((3, 8, 8))
    for moved in (one.source.roll(1, 1), one.source.roll(4, 2).flip(1).roll(1, 1), one.source.mT[:, :, :].roll(2, 2)):
        assert patch_map(replace(one, source=moved), (4, 4)) is None
    assert patch_map(replace(one, source=one.source.roll(4, 2)), (4, 4)) is not None


def test_values_outside_the_last_whole_patch_do_not_count() -> None:
    one = straight((1, 9, 8))
    found = patch_map(one, (4, 4))
    assert found is not None
    assert found.places.tolist() == [0, 1, 2, 3]
    assert patch_map(replace(one, source=one.source.roll(1, 1)), (4, 4)) is None
    outside, inside = torch.arange(64, 96), patches(torch.arange(96).reshape(1, 1, 12, 8), (8, 4))[0, 0]
    source = torch.arange(96)
    source[inside], source[outside] = outside, inside  # a whole patch from where the ViT does not look
    assert patch_map(ImageMap(source.reshape(1, 12, 8), torch.zeros(1, 12, 8).bool()), (8, 4)) is None


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(("name", "more", "shape"), [
    ("vit_tiny_patch16_224", {}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {}, (1, 8, 24)),
    ("vit_tiny_patch16_224", {"patch_size": [2, 4]}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"no_embed_class": True}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"reg_tokens": 3}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"reg_tokens": 3, "no_embed_class": True}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"global_pool": "map"}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"pos_embed": "none"}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"pre_norm": True}, (3, 16, 16)),
    ("vit_tiny_patch16_224", {"dynamic_img_size": True}, (3, 16, 16)),
    ("deit_tiny_distilled_patch16_224", {}, (3, 16, 16)),
    ("deit3_small_patch16_224", {}, (3, 16, 16)),
    ("vit_base_patch16_clip_224", {}, (3, 16, 16)),
])
def test_the_encrypted_vit_does_what_the_plain_one_does(name: str, more: dict[str, Any], shape: Shape,
                                                        alike: bool) -> None:
    plain = vit(shape, name, **more)
    seen = vit_shape(plain)
    assert seen is not None
    assert seen.image == shape
    cipher, images = drawn(shape, seen.patch, alike, 1), images8(4, shape).double()
    adapted = encrypted(plain, cipher)
    assert (adapted.factory == plain.factory) == alike
    moved = applied(cipher, images, seen.patch)
    torch.testing.assert_close(logits(adapted, moved), logits(plain, images), atol=1e-9, rtol=0)
    assert (logits(plain, moved) - logits(plain, images)).abs().max() > 1e-2


def mistaken(cipher: PatchMap) -> dict[str, PatchMap]:
    return {
        "places inverted": replace(cipher, places=cipher.places.argsort()),
        "places kept": replace(cipher, places=cipher.places.sort().values),
        "entries inverted": replace(cipher, entries=cipher.entries.argsort(1)),
        "signs forgotten": replace(cipher, negative=torch.zeros_like(cipher.negative)),
        "signs before the shuffle": replace(cipher, negative=cipher.negative.gather(1, cipher.entries)),
        "one patch of the wrong sign": replace(cipher, negative=cipher.negative ^ (torch.arange(
            len(cipher.negative)) == 0)[:, None]),
        "two entries swapped": replace(cipher, entries=torch.cat([cipher.entries[:, [1, 0]], cipher.entries[:, 2:]],
                                                                 1)),
    }


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("mistake", list(mistaken(drawn((3, 2, 2), (1, 1), True, 0))))
def test_a_mistake_in_the_key_shows(mistake: str, alike: bool) -> None:
    plain, shape, cipher = vit(), (3, 16, 16), drawn((3, 16, 16), (4, 4), alike, 2)
    images = images8(4, shape)
    moved = applied(cipher, images, (4, 4))
    wrong = encrypted(plain, mistaken(cipher)[mistake])
    assert (logits(wrong, moved) - logits(plain, images)).abs().max() > 1e-3


def test_the_prefix_tokens_keep_their_positions() -> None:
    plain, cipher = vit(reg_tokens=2), drawn((3, 16, 16), (4, 4), True, 3)
    state = encrypted(plain, cipher).state
    assert state is not None
    assert plain.state is not None
    assert torch.equal(state[POSITIONS][:, :3], plain.state[POSITIONS][:, :3])
    assert torch.equal(state[POSITIONS][:, 3:], plain.state[POSITIONS][:, 3:][:, cipher.places])


@pytest.mark.parametrize("alike", [True, False])
def test_the_plain_weights_are_not_touched_nor_shared(alike: bool) -> None:
    plain = vit()
    assert plain.state is not None
    before = {name: value.clone() for name, value in plain.state.items()}
    state = encrypted(plain, drawn((3, 16, 16), (4, 4), alike, 4)).state
    assert state is not None
    for value in state.values():
        value.zero_()
    assert all(torch.equal(before[name], value) for name, value in plain.state.items())


def test_without_weights_only_the_architecture_changes() -> None:
    plain = Model(vit().factory, vit().kwargs)
    assert encrypted(plain, drawn((3, 16, 16), (4, 4), True, 0)) == plain
    other = encrypted(plain, drawn((3, 16, 16), (4, 4), False, 0))
    assert other.state is None
    assert dict(other.build().named_parameters())[KERNEL].shape == (16, 32, 48)


@pytest.mark.parametrize("factory", ["timm:resnet18", "torchvision:vit_b_16", "ppbench.nets:convnet",
                                     "timm:vit_relpos_small_patch16_224", "timm:swin_tiny_patch4_window7_224",
                                     "timm:vit_tiny_r_s16_p8_224"])
def test_other_networks_are_no_plain_vit(factory: str) -> None:
    assert vit_shape(Model(factory, {"num_classes": 3})) is None


def test_the_shape_of_a_vit() -> None:
    assert vit_shape(Model("timm:vit_base_patch16_224", {})) == VitShape((3, 224, 224), (16, 16), 768)
    assert vit_shape(vit((1, 8, 24), patch_size=2)) == VitShape((1, 8, 24), (2, 2), 32)


def test_reading_a_shape_draws_nothing() -> None:
    state = torch.get_rng_state()
    vit_shape(Model("timm:vit_tiny_patch16_224", {}))
    assert torch.equal(torch.get_rng_state(), state)
