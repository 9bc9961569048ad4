"""Pairs of another key: outvoted by the others; and pairs that nothing explains, which end no run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from release_views import attacked, natural, view_of
from torch import Tensor

from ppbench.attacks._key_pairs import recover
from ppbench.attacks._key_structure import structure_of
from ppbench.attacks._key_vote import agreed
from ppbench.attacks.key_recovery import KeyRecovery
from ppbench.defense import draw_keys
from ppbench.model import for_images
from ppbench.seeding import generator, seeded
from ppbench.view import Pairs, View

SHAPE = (3, 16, 16)
PRIVATE, PUBLIC = natural(12, SHAPE, 0), natural(40, SHAPE, 1)
PRESETS = ["vit-cipher", "etc", "le", "ele", "pe"]


def with_pairs(view: View, plain: Tensor, made: Tensor) -> View:
    return View(replace(view.sealed, pairs=Pairs(plain, made)))


def spoilt(params: dict[str, Any], pairs: int, false: list[int]) -> View:
    """Return a view in which some pairs are of another key."""
    mine, other = (view_of(PRIVATE, PUBLIC, "block-scrambling", params, "global", pairs=pairs, seed=seed)
                   for seed in (1, 2))
    made = mine.pairs.protected.clone()
    made[false] = other.pairs.protected[false]
    return with_pairs(mine, mine.pairs.plain, made)


@pytest.mark.parametrize("params", [{"preset": preset} for preset in PRESETS] + [{"preset": "vit-cipher", "block": 8}])
@pytest.mark.parametrize(("pairs", "false"), [(8, [0]), (40, [0, 5, 6, 7, 30])])
def test_pairs_of_another_key_are_voted_out(params: dict[str, Any], pairs: int, false: list[int]) -> None:
    found = attacked(KeyRecovery(), spoilt(params, pairs, false))
    rest = [row for row in range(pairs) if row not in false]
    clean = view_of(PRIVATE, PUBLIC, "block-scrambling", params, "global", pairs=pairs)
    alone = attacked(KeyRecovery(), with_pairs(clean, clean.pairs.plain[rest], clean.pairs.protected[rest]))
    assert torch.equal(found.images, alone.images)
    assert found.note == alone.note.replace(f"{len(rest)} pairs:", f"{len(rest)} pairs ({len(false)} of another key "
                                                                   "left out):")
    if pairs == 40 or params["preset"] != "ele":
        assert torch.equal(found.images, PRIVATE.pixels)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_larger_party_wins(preset: str) -> None:
    view = spoilt({"preset": preset}, 40, list(range(12)))
    structure = structure_of(view.algorithm, SHAPE)
    assert structure is not None
    _, rows = agreed(structure, *(structure.levels(part) for part in (view.pairs.plain, view.pairs.protected)))
    assert rows.tolist() == [False] * 12 + [True] * 28


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pairs", [1, 6])
def test_noise_in_place_of_pairs_ends_no_run(preset: str, pairs: int) -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {"preset": preset}, "global", pairs=pairs)
    noise = (torch.rand(view.pairs.protected.shape, generator=generator(9)) * 255).round() / 255
    found = attacked(KeyRecovery(), with_pairs(view, view.pairs.plain, noise))
    assert found.images.isfinite().all()
    assert "left out" not in found.note


def one_value_wrong(pixels: Tensor, rows: list[int]) -> Tensor:
    """Put another level, drawn anew, at one place of some images."""
    pixels, rng = pixels.clone(), generator(8)
    pixels[rows, 0, 0, 0] = (pixels[rows, 0, 0, 0] + torch.randint(40, 216, (len(rows),), generator=rng) / 255) % 1.0
    pixels[rows, 0, 0, 0] = (pixels[rows, 0, 0, 0] * 255).round() / 255
    return pixels


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("pairs", [1, 6])
def test_one_wrong_value_in_every_pair_ends_no_run(preset: str, pairs: int) -> None:
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {"preset": preset}, "global", pairs=pairs)
    made = one_value_wrong(view.pairs.protected, list(range(pairs)))
    found = attacked(KeyRecovery(), with_pairs(view, view.pairs.plain, made))
    assert found.images.isfinite().all()
    assert "left out" not in found.note


@pytest.mark.parametrize("preset", PRESETS)
def test_one_wrong_value_spoils_a_pair_alone(preset: str) -> None:
    """Of 40 pairs one has a wrong value and one is of another key; the key is that of the others."""
    view = spoilt({"preset": preset}, 40, [3])
    found = attacked(KeyRecovery(), with_pairs(view, view.pairs.plain, one_value_wrong(view.pairs.protected, [20])))
    assert found.note.startswith("38 pairs (2 of another key left out): 100.0%")
    assert torch.equal(found.images, PRIVATE.pixels)


@pytest.mark.parametrize("preset", ["etc", "le", "ele", "pe"])
def test_a_pair_that_tells_nothing_does_not_outvote_those_that_tell_nearly_all(preset: str) -> None:
    """A flat image is explained by any key; the others have a wrong value each."""
    view = view_of(PRIVATE, PUBLIC, "block-scrambling", {"preset": preset}, "global", pairs=16)
    plain, made = view.pairs.plain.clone(), one_value_wrong(view.pairs.protected, list(range(15)))
    plain[15] = made[15] = 1
    found = attacked(KeyRecovery(settle=False), with_pairs(view, plain, made))
    assert found.note.startswith("16 pairs: ")
    structure = structure_of(view.algorithm, SHAPE)
    assert structure is not None
    together = recover(structure, structure.levels(plain), structure.levels(made)).key
    assert torch.equal(found.images, structure.image_of(together.decrypt(structure.levels(view.images),
                                                                        structure.top)))


def test_of_two_pairs_of_two_keys_the_first_is_believed() -> None:
    found = attacked(KeyRecovery(), spoilt({"preset": "etc"}, 2, [1]))
    assert found.note.startswith("1 pair (1 of another key left out): 100.0%")


@pytest.mark.parametrize("preset", ["vit-cipher", "ele"])
@pytest.mark.parametrize("settle", [True, False])
def test_weights_tell_what_few_pairs_leave_open(preset: str, settle: bool) -> None:
    """The known image is flat: it tells next to nothing of the key that the victim's weights hold."""
    kwargs = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    flat = replace(PUBLIC, pixels=torch.full_like(PUBLIC.pixels, 0.2))
    params: dict[str, Any] = {"preset": preset, "absorb": "layers"}
    view = view_of(PRIVATE, flat, "block-scrambling", params, "global", pairs=1)
    plain = for_images("timm:vit_tiny_patch16_224", kwargs, SHAPE, 2)
    with seeded(0):
        plain = plain.with_state(plain.build())
    keys = draw_keys(view.algorithm.defense, "global", len(PRIVATE), SHAPE, generator(1))
    model = view.algorithm.defense.adapt(plain, keys)
    more = View(replace(view.sealed, granted=view.sealed.granted | {"model"}, model=model, start=plain))
    assert not torch.equal(attacked(KeyRecovery(settle=settle), view).images, PRIVATE.pixels)
    found = attacked(KeyRecovery(settle=settle), more)
    assert torch.equal(found.images, PRIVATE.pixels)
    assert "1 pair: " in found.note
    assert "by the weights" in found.note
