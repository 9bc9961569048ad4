"""Retrieval: features that ciphers cannot change, and which image comes back."""

import pytest
import torch
from release_views import attacked, natural, view_of

from ppbench.attacks.nearest_public import NearestPublic, RetrievalFeature, features, nearest
from ppbench.data import Images
from ppbench.seeding import generator

PRIVATE, PUBLIC = natural(6, (3, 16, 16), 0), natural(40, (3, 16, 16), 1)


@pytest.mark.parametrize(("name", "params", "unchanged"), [
    ("pixel-permutation", {}, {"sorted values", "sorted contrasts"}),
    ("patch-shuffle", {}, {"sorted values", "sorted contrasts", "colour moments", "sorted values of each channel",
                           "sorted values of sorted blocks", "sorted contrasts of sorted blocks"}),
    ("block-scrambling", {}, {"sorted values", "sorted contrasts", "sorted values of sorted blocks",
                              "sorted contrasts of sorted blocks"}),
    ("none", {}, {"pixels", "a thumbnail"})])
def test_features_that_the_cipher_leaves_alone(name: str, params: dict[str, object], unchanged: set[str]) -> None:
    scope = None if name == "none" else "image"
    view = view_of(PRIVATE, PUBLIC, name, params, scope)
    named = features(view)
    for key in unchanged:
        assert torch.allclose(named[key](view.images), named[key](PRIVATE.pixels), atol=1e-3), key
    assert len({tuple(row) for row in named["sorted values"](view.images).tolist()}) == len(PRIVATE)


@pytest.mark.parametrize(("name", "feature"), [("none", "pixels"), ("patch-shuffle", "sorted values"),
                                               ("block-scrambling", "sorted values of sorted blocks")])
def test_an_image_that_is_public_is_found_by_what_the_cipher_leaves(name: str, feature: str) -> None:
    scope = None if name == "none" else "image"
    view = view_of(PUBLIC[8:14], PUBLIC, name, {}, scope)
    chosen = torch.tensor(list(features(view)).index(feature))
    found = NearestPublic().run(view, {"feature": {"chosen": chosen}}, generator(0))
    assert torch.equal(found.images, PUBLIC.pixels[8:14])
    assert feature in found.note


def test_nearest_by_brute_force_within_the_class() -> None:
    rng = generator(0)
    queries, entries = torch.rand(7, 5, generator=rng), torch.rand(20, 5, generator=rng)
    mine, theirs = torch.arange(7) % 4, torch.arange(20) % 3  # class 3 has no entry
    found = nearest(queries, entries, mine, theirs)
    for i in range(7):
        allowed = [j for j in range(20) if theirs[j] == mine[i]] or list(range(20))
        assert int(found[i]) == min(allowed, key=lambda j: float((queries[i] - entries[j]).square().sum()))
    free = nearest(queries, entries, None, theirs)
    assert torch.equal(free, torch.cdist(queries, entries).argmin(1))


def test_the_best_score_decides() -> None:
    view = view_of(PRIVATE, PUBLIC, "patch-shuffle", {}, "image")
    learnt = RetrievalFeature().train(view.only(RetrievalFeature.needs), generator(0))
    assert int(learnt["chosen"]) == int(learnt["scores"].argmax())
    assert len(learnt["scores"]) == len(features(view))
    assert learnt["scores"].unique().numel() > 1


@pytest.mark.parametrize("labels", [True, False])
def test_public_images_come_back_of_the_class_that_is_known(labels: bool) -> None:
    view = view_of(PRIVATE, PUBLIC, "mixup", labels=labels)
    found = attacked(NearestPublic(), view)
    same = (found.images[:, None] == PUBLIC.pixels).flatten(2).all(2)
    assert same.any(1).all()
    if labels:
        assert torch.equal(PUBLIC.labels[same.int().argmax(1)], PRIVATE.labels)


def test_a_release_without_partners_is_compared_with_plain_images() -> None:
    view = view_of(PRIVATE, PUBLIC[:12], "bn-synthesis", {"steps": 1, "teacher_epochs": 1})
    found = attacked(NearestPublic(), view)
    assert not found.aligned
    assert found.note == "nearest public image by pixels"


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 12, 16), (3, 15, 11), (1, 5, 7)])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_shape_one_target_and_hardly_any_public_images(shape: tuple[int, int, int], count: int) -> None:
    found = attacked(NearestPublic(), view_of(natural(1, shape, 0), natural(count, shape, 1), "none"))
    assert found.images.shape == (1, *shape)


def test_the_same_seed_gives_the_same_image() -> None:
    view = view_of(PRIVATE, PUBLIC, "gaussian-noise")
    assert torch.equal(attacked(NearestPublic(), view).images, attacked(NearestPublic(), view).images)


def test_a_class_without_public_images_is_no_obstacle() -> None:
    public = Images(PUBLIC.pixels, torch.full((40,), 5), PUBLIC.ids)
    attacked(NearestPublic(), view_of(PRIVATE, public, "none"))
