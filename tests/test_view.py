"""The view: reading what was not granted raises, and taking away takes away."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_view import everything, tensors_in

from ppbench import codec
from ppbench.defense import Release
from ppbench.errors import NotGranted
from ppbench.threat import CAPABILITIES
from ppbench.view import PARTS, Sealed, View, quantised

PROPERTIES = {"release": "images", "target_rows": "images", "images": "images", "has_partner": "images",
              "labels": "labels", "public": "public", "algorithm": "algorithm", "pairs": "pairs", "answers": "oracle",
              "model": "model", "start": "model", "update": "gradients", "keys": "key",
              "candidates": "candidates", "recipe": "candidates"}


def test_every_property_is_guarded_by_a_capability() -> None:
    found = {name for name, value in vars(View).items() if isinstance(value, property)}
    assert found == set(PROPERTIES)


@pytest.mark.parametrize(("name", "capability"), PROPERTIES.items())
def test_a_property_needs_its_capability_and_no_other(name: str, capability: str) -> None:
    sealed = everything()
    getattr(View(sealed), name)
    getattr(View(replace(sealed, granted=frozenset({capability}))), name)
    # Even if the data were there by mistake.
    without = View(replace(sealed, granted=frozenset(CAPABILITIES) - {capability}))
    with pytest.raises(NotGranted, match=f"'{capability}'"):
        getattr(without, name)


@pytest.mark.parametrize(("name", "capability"), [(n, c) for n, c in PROPERTIES.items() if n not in ("keys", "start")])
def test_a_granted_part_that_is_not_there_raises_too(name: str, capability: str) -> None:
    empty = Sealed(frozenset({capability}), (3, 8, 8), (3, 4, 4), 4, 3)
    with pytest.raises(NotGranted, match=f"'{capability}'"):
        getattr(View(empty), name)


def test_a_defense_without_key_has_keys_none_and_private_weights_are_none() -> None:
    assert View(Sealed(frozenset({"key"}), (3, 8, 8), (3, 4, 4), 4, 3)).keys is None
    assert View(Sealed(frozenset({"model"}), (3, 8, 8), (3, 4, 4), 4, 3)).start is None


def test_images_are_the_targets_rows_of_the_release() -> None:
    sealed = replace(everything(), target_rows=torch.tensor([5, 1, 0, 2]))
    assert sealed.release is not None
    assert torch.equal(View(sealed).images, sealed.release.images[[5, 1, 0, 2]])
    assert View(sealed).has_partner
    assert not View(replace(sealed, release=replace(sealed.release, source=None))).has_partner


@pytest.mark.parametrize("kept", [frozenset(), *(frozenset({name}) for name in sorted(CAPABILITIES)),
                                  frozenset({"public", "labels"}), frozenset({"images", "algorithm", "key"})])
def test_only_strips_all_else(kept: frozenset[str]) -> None:
    sealed = everything()
    if "labels" not in kept:  # what is stripped of the release itself: tests/test_threat.py
        sealed = replace(sealed, release=replace(sealed.release, labels=torch.full((6,), -1)))
    cut = View(sealed).only(kept).sealed
    assert cut.granted == kept
    if cut.release is not None and "labels" not in kept:
        assert (cut.release.labels == -1).all()
        cut = replace(cut, release=sealed.release)
    for capability, parts in PARTS.items():
        for part in parts:
            assert getattr(cut, part) is (getattr(sealed, part) if capability in kept else None)
    allowed = {id(tensor) for name in kept for part in PARTS[name] for tensor in tensors_in(getattr(sealed, part))}
    assert {id(tensor) for tensor in tensors_in(cut)} == allowed


def test_only_cannot_grant_more() -> None:
    poor = View(everything()).only(frozenset({"public"}))
    assert poor.only(frozenset(CAPABILITIES)).granted == {"public"}


def test_what_is_left_without_release_and_algorithm_does_not_depend_on_the_defense() -> None:
    one = everything()
    other = replace(one, released_shape=(1, 2, 2), algorithm=None, release=None)
    for kept in (frozenset({"public"}), frozenset({"public", "labels"})):
        assert codec.digest(View(one).only(kept).sealed) == codec.digest(View(other).only(kept).sealed)
    assert View(one).only(frozenset({"images"})).released_shape == (3, 4, 4)
    assert View(one).only(frozenset({"algorithm"})).released_shape == (3, 4, 4)


def test_a_view_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    sealed = everything()
    (tmp_path / "view").write_bytes(codec.dump(sealed))
    back = codec.load(Sealed, tmp_path / "view")
    assert codec.dump(back) == codec.dump(sealed)
    assert back.granted == sealed.granted
    assert back.algorithm == sealed.algorithm
    assert back.image_shape == (3, 8, 8)
    assert back.model is not None
    assert back.model.kwargs == {"num_classes": 3, "nested": {"a": [1, 2.5, None, True]}}
    ours, theirs = codec.pack(sealed)[1], codec.pack(back)[1]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor)


def test_a_view_cut_down_comes_back_cut_down(tmp_path: Path) -> None:
    cut = View(everything()).only(frozenset({"public", "key"})).sealed
    (tmp_path / "view").write_bytes(codec.dump(cut))
    assert codec.dump(codec.load(Sealed, tmp_path / "view")) == codec.dump(cut)


def test_with_images_puts_estimates_in_the_place_of_the_release() -> None:
    view = View(everything()).only(frozenset({"public", "algorithm"}))
    estimates, labels = torch.rand(4, 3, 4, 4), torch.tensor([0, 1, 2, 0])
    found = view.with_images(estimates, labels)
    assert found.granted == {"images", "public", "algorithm"}
    assert torch.equal(found.images, estimates)
    assert torch.equal(found.release.labels, labels)
    assert not found.release.extras
    with pytest.raises(NotGranted):
        view.images  # noqa: B018


def test_the_algorithm_runs_with_keys_of_ones_own() -> None:
    view = View(everything())
    rng = torch.Generator().manual_seed(1)
    released = view.algorithm.protect(view.public, rng)
    assert released.images.shape == view.public.pixels.shape
    assert torch.equal(released.images, codec.to_bytes8(released.images))
    again = view.algorithm.protect(view.public, rng)
    assert not torch.equal(released.images, again.images)  # another key


def test_a_release_is_rounded_to_eight_bits_or_left_alone() -> None:
    release = Release(torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), None)
    assert torch.equal(quantised(release, 8).images, codec.to_bytes8(release.images))
    assert quantised(release, 0) is release
