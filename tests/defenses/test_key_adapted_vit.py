"""Block scrambling's encrypted ViT: every preset, key scope and setting against the plain ViT on plain images."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from vit_helpers import images8, logits, vit

from ppbench.codec import to_bytes8
from ppbench.data import Shape
from ppbench.defense import Keys, draw_keys
from ppbench.defenses.block_scrambling import PRESETS, BlockScrambling
from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.seeding import generator, seeded
from ppbench.vit.shape import KERNEL, POSITIONS

REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[2] / "../shared"))
SHAPE = (3, 16, 16)
KEYED = "ppbench.vit.positionwise:keyed_vit"
STEPS: dict[str, list[Any]] = {
    "move": [None, True, False], "turn": [None, True, False], "colours": [None, "none", "block", "pixel"],
    "negative": [None, "none", "block", "shared", "own"], "pixels": [None, "none", "shared", "own"],
    "nibbles": [None, True, False],
}
SCOPES: dict[str, tuple[Any, int]] = {"global": ("global", 1), "one client": ("client", 1),
                                      "two clients": ("client", 2), "image": ("image", 1)}


def table() -> dict[str, str]:
    """What the docstring says of every preset: how one key is absorbed."""
    rows = re.findall(r"^ *\| `([a-z-]+)` \|.*\| ([^|]+) \|$", BlockScrambling.__doc__ or "", re.MULTILINE)
    return dict(rows)


def keys_of(defense: BlockScrambling, scope: str, count: int, shape: Shape = SHAPE, seed: int = 0) -> Keys:
    kind, clients = SCOPES[scope]
    keys = draw_keys(defense, kind, count, shape, generator(seed), clients)
    assert keys is not None
    return keys


def adapted(defense: BlockScrambling, plain: Model, keys: Keys) -> Model | str:
    """The victim, or why there is none."""
    try:
        return defense.adapt(plain, keys)
    except UserError as error:
        return str(error)


def difference(adapted: Model, defense: BlockScrambling, keys: Keys, images: Tensor, plain: Model) -> float:
    """|logits of encrypted images - the plain model's of plain images|, at most."""
    encrypted = defense.query(images, keys, generator(0))
    return float((logits(adapted, encrypted) - logits(plain, images)).abs().max())


def test_the_docstring_lists_every_preset() -> None:
    assert table().keys() == PRESETS.keys()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_absorbed_as_its_row_says(preset: Any, scope: str) -> None:
    images, plain, said = images8(6), vit(), table()[preset]
    found = {}
    for absorb in ("none", "weights", "layers"):
        defense = BlockScrambling(preset, absorb=absorb)
        keys = keys_of(defense, scope, len(images))
        model = adapted(defense, plain, keys)
        if isinstance(model, str):
            found[absorb] = "refused" if "keys at once" in model else model
            continue
        apart = difference(model, defense, keys, images, plain)
        assert apart < 1e-6 or apart > 1e-2
        same = model.factory == plain.factory and model.kwargs == plain.kwargs
        found[absorb] = ("weights" if same else "layers") if apart < 1e-6 else "left" if model == plain else "wrong"
        if found[absorb] == "layers":
            new = [name for name in ("positions", "nibbles") if model.kwargs[name]]
            assert said == "layers: " + ", ".join("halves" if name == "nibbles" else name for name in new)
    absorbed = said.split(":")[0]
    if scope in ("two clients", "image"):
        assert found == {"none": "left", "weights": "left", "layers": "refused"}
    else:
        assert found == {"none": "left", "weights": "weights" if absorbed == "weights" else "left", "layers": absorbed}


@st.composite
def ciphers(draw: st.DrawFn) -> BlockScrambling:
    changes = {name: draw(st.sampled_from(values)) for name, values in STEPS.items()}
    try:
        return BlockScrambling(draw(st.sampled_from(sorted(PRESETS))), draw(st.sampled_from([2, 4])), **changes,
                               absorb=draw(st.sampled_from(["weights", "layers"])))
    except ValueError:
        assume(False)
        raise


@settings(deadline=None, max_examples=120)
@given(ciphers(), st.sampled_from([1, 3]), st.sampled_from([2, 4]), st.sampled_from([(16, 16), (8, 12)]),
       st.integers(0, 2**32))
def test_any_steps_under_any_key_are_absorbed_or_refused(defense: BlockScrambling, channels: int, patch: int,
                                                         size: tuple[int, int], seed: int) -> None:
    shape = (channels, *size)
    images, plain = images8(3, shape, seed), vit(shape, patch_size=patch, depth=1)
    keys = keys_of(defense, "global", 3, shape, seed)
    recipe = defense.recipe
    model = adapted(defense, plain, keys)
    if isinstance(model, str):
        assert f"block = {patch}" in model
        assert defense.block != patch
        assert defense.absorb == "layers" or recipe.alike
        return
    if defense.absorb == "layers" or (recipe.alike and defense.block == patch):
        assert difference(model, defense, keys, images, plain) < 1e-6
    if defense.absorb == "weights":
        assert model.factory == plain.factory
        if recipe.alike:
            assert difference(model, defense, keys, images, plain) < 1e-6


@pytest.mark.parametrize(("preset", "block", "patch"), [("vit-cipher", 8, 4), ("vit-cipher", 4, 8),
                                                        ("vit-cipher", 2, 4), ("vit-cipher", 4, 2)])
def test_patches_that_mix_the_blocks_are_refused_with_the_way_out(preset: Any, block: int, patch: int) -> None:
    defense, plain = BlockScrambling(preset, block), vit(patch_size=patch)
    for model in (plain, Model(plain.factory, plain.kwargs)):
        with pytest.raises(UserError, match=f"patch_size = {block} .* block = {patch}") as caught:
            defense.adapt(model, keys_of(defense, "global", 1))
        assert str(caught.value).count("\n") == 0
    defense.adapt(vit(patch_size=block), keys_of(defense, "global", 1))  # the first way
    other = BlockScrambling(preset, patch)
    other.adapt(plain, keys_of(other, "global", 1))  # the second
    assert BlockScrambling(preset, block, absorb="none").adapt(plain, None) == plain  # the third


@pytest.mark.parametrize(("preset", "block", "patch", "weights", "layers"), [
    ("etc", 4, 8, "left", "refused"), ("ele", 4, 8, "left", "refused"), ("le", 4, 2, "left", "refused"),
    ("le", 4, 8, "left", "absorbed"), ("pe", 4, 8, "left", "absorbed"),  # whole blocks that stay where they are
    ("etc", 8, 4, "left", "absorbed"),  # whole patches that move and turn with their block
])
def test_what_needs_layers_and_a_patch_of_another_size(preset: Any, block: int, patch: int, weights: str,
                                                       layers: str) -> None:
    plain, images = vit(patch_size=patch), images8(3)
    for absorb, expected in (("weights", weights), ("layers", layers)):
        defense = BlockScrambling(preset, block, absorb=absorb)  # type: ignore[arg-type]
        keys = keys_of(defense, "global", 3)
        if expected == "refused":
            with pytest.raises(UserError, match="mix values of several"):
                defense.adapt(plain, keys)
        else:
            close = difference(defense.adapt(plain, keys), defense, keys, images, plain) < 1e-6
            assert close == (expected == "absorbed")


def test_blocks_that_stay_are_absorbed_by_larger_patches() -> None:
    defense, plain, images = BlockScrambling(move=False), vit(patch_size=8), images8(3)
    keys = keys_of(defense, "global", 3)
    model = defense.adapt(plain, keys)
    assert model.factory == plain.factory
    assert difference(model, defense, keys, images, plain) < 1e-6


@pytest.mark.parametrize("factory", ["torchvision:resnet18", "timm:resnet18", "ppbench.nets:convnet"])
def test_other_networks_are_left_as_they_are_or_refused(factory: str) -> None:
    model, keys = Model(factory, {"num_classes": 3}), keys_of(BlockScrambling(), "global", 1)
    assert BlockScrambling().adapt(model, keys) == model
    with pytest.raises(UserError, match="plain vision transformers"):
        BlockScrambling(absorb="layers").adapt(model, keys)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="absorb is 'all'; it must be one of none, weights, layers"):
        BlockScrambling(absorb="all")  # type: ignore[arg-type]


def test_how_the_victim_is_adapted_changes_neither_key_nor_release() -> None:
    images = images8(2)
    found = []
    for absorb in ("none", "weights", "layers"):
        defense = BlockScrambling("ele", absorb=absorb)
        found.append(defense.query(images, keys_of(defense, "global", 2), generator(0)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert BlockScrambling.victim_params == {"absorb"}


def test_without_weights_the_architecture_is_returned() -> None:
    recipe = Model(vit().factory, vit().kwargs)
    for preset, factory in (("vit-cipher", recipe.factory), ("etc", KEYED), ("le", KEYED)):
        defense = BlockScrambling(preset, absorb="layers")  # type: ignore[arg-type]
        model = defense.adapt(recipe, keys_of(defense, "global", 1))
        assert model.state is None
        assert model.factory == factory
        assert model.build()(images8(2)).shape == (2, 5)


# Training


def trained(model: Model, images: Tensor, labels: Tensor, steps: int, dtype: torch.dtype) -> Model:
    """Take full-batch AdamW steps."""
    net = model.build().to(dtype).train()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    for _ in range(steps):
        loss = cross_entropy(net(images.to(dtype)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.with_state(net)


def decrypted(state: dict[str, Tensor], key: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map encrypted weights back by the key alone: none of the code under test."""
    found = dict(state)
    flat = found[KERNEL].flatten(1)
    plain = torch.empty_like(flat)
    places, order, negated = key["blocks"][0], key["pixels"][0], key["negative"][0].flatten()
    for j, entry in enumerate(order.tolist()):
        plain[:, entry] = -flat[:, j] if negated[entry] else flat[:, j]  # negated first, then shuffled
    found[KERNEL] = plain.reshape(found[KERNEL].shape)
    moved = found[POSITIONS].clone()
    for place, origin in enumerate(places.tolist()):
        moved[:, 1 + origin] = found[POSITIONS][:, 1 + place]
    found[POSITIONS] = moved
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_training_from_the_adapted_weights_follows_the_plain_trajectory(dtype: torch.dtype, tolerance: float) -> None:
    """20 AdamW steps under permutations and sign flips, mapped back by the key."""
    defense = BlockScrambling(negative="shared")
    images, labels, keys = images8(16), torch.arange(16) % 5, keys_of(defense, "global", 16)
    plain = vit(std=0.1)
    encrypted = defense.encrypt(images.to(dtype), keys.per_image(), generator(0))
    one = trained(plain, images, labels, 20, dtype)
    other = trained(defense.adapt(plain, keys), encrypted, labels, 20, dtype)
    assert one.state is not None
    assert other.state is not None
    assert plain.state is not None
    back = decrypted(other.state, keys.values)
    for name, value in one.state.items():
        if dtype == torch.float64 or "qkv.bias" not in name:  # softmax ignores the keys' bias: its gradient is rounding
            torch.testing.assert_close(back[name], value, atol=tolerance, rtol=0, msg=name)
    assert (one.state[KERNEL] - plain.state[KERNEL]).abs().max() > 1e-2  # it did move
    assert difference(other, defense, keys, images, one) < max(10 * tolerance, 1e-6)  # build() rounds to float32
    unadapted = trained(plain, encrypted, labels, 20, dtype)
    assert unadapted.state is not None
    wrong = decrypted(unadapted.state, keys.values)
    assert (wrong[KERNEL] - one.state[KERNEL]).abs().max() > 1e-2


def test_new_layers_do_not_follow_the_plain_trajectory() -> None:
    """As the docstring says: every position learns for itself."""
    defense = BlockScrambling("etc", absorb="layers")
    images, labels, keys = images8(16), torch.arange(16) % 5, keys_of(defense, "global", 16)
    plain = vit(std=0.1)
    encrypted = defense.encrypt(images, keys.per_image(), generator(0))
    one = trained(plain, images, labels, 5, torch.float64)
    other = trained(defense.adapt(plain, keys), encrypted, labels, 5, torch.float64)
    assert difference(other, defense, keys, images, one) > 1e-2


# Real images


def cifar(count: int) -> tuple[Tensor, Tensor]:
    folder = REAL / "data/cifar10"
    if not folder.is_dir():
        pytest.skip(f"no data/cifar10 in {REAL} (set PPBENCH_DATA)")
    atlas = np.asarray(Image.open(folder / "cifar10_test.webp").convert("RGB"))
    tiles = atlas.reshape(-1, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[:count]
    labels = np.load(folder / "cifar10_labels.npz")["test"][:count].astype(np.int64)
    return torch.from_numpy(tiles.transpose(0, 3, 1, 2) / np.float32(255)), torch.from_numpy(labels)


@torch.no_grad()
def in_float32(model: Model, images: Tensor) -> Tensor:
    net = model.build().eval()
    return torch.cat([net(batch) for batch in images.split(200)])


@pytest.mark.real
@pytest.mark.slow
def test_a_trained_vit_classifies_encrypted_cifar_as_it_does_plain() -> None:
    images, labels = cifar(1000)
    small = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
    model = for_images("timm:vit_tiny_patch16_224", small, (3, 32, 32), 10)
    with seeded(0):
        net = model.build()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    for step in range(60):
        rows = torch.arange(50) + 50 * (step % 20)
        loss = cross_entropy(net(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    plain = model.with_state(net)
    assert (in_float32(plain, images).argmax(1) == labels).float().mean() > 0.25
    images = images[:300]
    expected = in_float32(plain, images)
    for preset in PRESETS:
        defense = BlockScrambling(preset, absorb="layers")  # type: ignore[arg-type]
        keys = keys_of(defense, "global", len(images), (3, 32, 32))
        released = to_bytes8(defense.query(images, keys, generator(0)))
        assert (in_float32(defense.adapt(plain, keys), released) - expected).abs().max() <= 1e-4
        if preset == "vit-cipher":
            assert (in_float32(plain, released) - expected).abs().max() > 1


@pytest.mark.real
@pytest.mark.slow
def test_vit_base_at_224_on_photographs() -> None:
    files = sorted((REAL / "data/imagenet_sample").glob("*.jpg"))[:2]
    if not files:
        pytest.skip(f"no data/imagenet_sample in {REAL} (set PPBENCH_DATA)")
    photos = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    images = torch.from_numpy(np.stack(photos)).movedim(3, 1) / 255
    model = for_images("timm:vit_base_patch16_224", {}, (3, 224, 224), 1000)
    with seeded(0):
        plain = model.with_state(model.build())
    expected = in_float32(plain, images)
    defense = BlockScrambling(block=16, negative="shared")
    keys = keys_of(defense, "global", len(images), (3, 224, 224))
    released = to_bytes8(defense.query(images, keys, generator(0)))
    assert (in_float32(defense.adapt(plain, keys), released) - expected).abs().max() <= 1e-4
    assert (in_float32(plain, released) - expected).abs().max() > 1e-2
