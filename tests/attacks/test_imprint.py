"""The imprint: a crafted layer whose gradient spells out what went through."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ppbench.attack import check_crafted, check_reconstruction
from ppbench.attacks._imprint import Imprint, read_bins, write_bins
from ppbench.attacks.imprint import ImprintAttack
from ppbench.data import Images
from ppbench.defense import Defense, draw_keys
from ppbench.errors import NotApplicable
from ppbench.plugins import build
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.updates import client_update
from ppbench.victim import start
from ppbench.view import Algorithm, Sealed, View

SHAPE, CLASSES, PIXELS = (3, 16, 16), 5, 768
CONV = Recipe(kwargs={"width": 8})
GRID = torch.linspace(-1, 1, 256, dtype=torch.float64)


def smooth(count: int, seed: int) -> Images:
    coarse = torch.rand(count, 3, 4, 4, generator=generator(seed))
    pixels = nn.functional.interpolate(coarse, SHAPE[1:], mode="bicubic").clamp(0, 1).mul(255).round().div(255)
    return Images(pixels, torch.arange(count) % CLASSES, torch.arange(count))


def layer_of(bins: int, measurements: int) -> Imprint:
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        layer = Imprint(net, PIXELS, bins)
    write_bins(layer, smooth(100, 1).pixels.flatten(1) * 2 - 1, measurements, generator(1))
    return layer


def gradients(layer: Imprint, images: Tensor) -> tuple[Tensor, Tensor]:
    loss = nn.functional.cross_entropy(layer(images * 2 - 1), torch.arange(len(images)) % CLASSES)
    weight, bias = torch.autograd.grad(loss, [layer.bins.weight, layer.bins.bias])
    return weight, bias


def hits(found: Tensor, images: Tensor, within: float = 2e-3) -> int:
    """Return how many images are among those found."""
    apart = torch.cdist(images.flatten(1).double(), (found.double() + 1) / 2) / PIXELS**0.5
    return int((apart.amin(1) < within).sum()) if len(found) else 0


@pytest.mark.parametrize("bins", [1, 7, 64])
@pytest.mark.parametrize("measurements", [1, 3])
def test_an_images_bins_are_one_a_measurement(bins: int, measurements: int) -> None:
    if measurements > bins:
        return
    layer = layer_of(bins, measurements)
    position = layer.bins(smooth(200, 2).pixels.flatten(1) * 2 - 1)
    inside = (position > 0) & (position < 1)
    each = bins // measurements
    for number in range(measurements):
        assert (inside[:, number * each : (number + 1) * each].sum(1) == 1).float().mean() > 0.99


def test_the_bins_are_evenly_filled() -> None:
    layer = layer_of(40, 2)
    position = layer.bins(smooth(2000, 2).pixels.flatten(1) * 2 - 1)
    shares = ((position > 0) & (position < 1)).float().mean(0)
    assert shares.min() > 0.01
    assert shares.max() < 0.15


def test_a_batch_is_read_exactly_where_one_measurement_mixes_many() -> None:
    images = smooth(100, 3).pixels
    found = {}
    for measurements in (1, 4):
        layer = layer_of(512, measurements)
        found[measurements] = read_bins(layer.bins, *gradients(layer, images), GRID, 100).images
    assert hits(found[4], images) == len(found[4]) == 100
    assert hits(found[1], images) == len(found[1]) < 95


def test_without_a_grid_of_values_two_measurements_must_agree() -> None:
    images = smooth(20, 3).pixels + 0.001 * torch.rand(20, *SHAPE, generator=generator(4))
    layer = layer_of(512, 4)
    found = read_bins(layer.bins, *gradients(layer, images), None, 20).images
    assert hits(found, images) == len(found) == 20
    alone = layer_of(512, 1)
    assert len(read_bins(alone.bins, *gradients(alone, images), None, 20).images) == 0


def test_images_that_share_all_bins_come_back_as_a_mean() -> None:
    images = smooth(3, 3).pixels
    layer = layer_of(1, 1)
    read = read_bins(layer.bins, *gradients(layer, images), GRID, 3)
    assert len(read.images) == 0
    assert len(read.mixed) <= 1  # none, where factors of either sign cancel
    for mean in read.mixed:
        basis = (images.flatten(1) * 2 - 1).double()
        residual = mean - basis.T @ torch.linalg.lstsq(basis.T, mean[:, None]).solution[:, 0]
        assert residual.norm() < 1e-3 * mean.norm()


@given(st.integers(0, 2**30), st.integers(1, 12))
def test_no_more_is_found_than_there_is(seed: int, count: int) -> None:
    images = smooth(count, seed).pixels
    layer = layer_of(64, 2)
    read = read_bins(layer.bins, *gradients(layer, images), GRID, count)
    assert len(read.images) <= count
    assert hits(read.images, images) <= count
    right = [hits(found[None], images) for found in read.images]
    assert all(right) or not any(right)  # two images that share all bins pass for one whose values were changed
    assert sum(right) >= count - 4


def attacked(defense: str = "none", targets: int = 10, batch: int = 5, **threat: Any) -> tuple[View, Tensor]:
    """Return what a malicious server sees of its own model, and the released images."""
    ref, private, public = Ref("defenses", defense), smooth(targets, 1), smooth(60, 2)
    made: Defense = build(ref)
    scope = made.key_scopes[0] if made.key_scopes else None
    keys = draw_keys(made, scope, targets, SHAPE, generator(3))
    release = made.protect(private, keys, generator(4))
    with seeded(5):
        honest = start(CONV, made, keys, SHAPE, CLASSES)
    sealed = Sealed(frozenset({"model", "public", "algorithm", "server"}), SHAPE, release.shape, targets, CLASSES,
                    public=public, model=honest, algorithm=Algorithm(ref, scope, 8))
    crafted = ImprintAttack().craft(View(sealed), generator(6))
    check_crafted(crafted, View(sealed))
    images = release.images.mul(255).round().div(255)
    update = client_update(crafted, images, release.labels, batch=batch,
                           **{"local_steps": 1, "learning_rate": 0.02, "bn_train": False} | threat)
    update = made.protect_update(update, generator(8))
    return View(replace(sealed, granted=sealed.granted | {"gradients"}, model=crafted, update=update)), images


@pytest.mark.parametrize("defense", ["none", "block-scrambling", "mixup", "secure-aggregation"])
@pytest.mark.parametrize(("batch", "local_steps"), [(1, 1), (5, 1), (4, 3), (10, 1)])
def test_releases_come_back_exactly(defense: str, batch: int, local_steps: int) -> None:
    view, images = attacked(defense, batch=batch, local_steps=local_steps)
    found = ImprintAttack().run(view, {}, generator(0))
    check_reconstruction(found, view)
    whole = view.update.batch * view.update.clients
    assert (found.of, found.aligned, found.within) == ("released", whole == 1, None if whole == 1 else whole)
    assert "10 of 10" in found.note
    assert hits(found.images.flatten(1) * 2 - 1, images) == 10
    for some in range(0, 10, whole):  # each in its own batch
        assert hits(found.images[some : some + whole].flatten(1) * 2 - 1, images[some : some + whole]) == min(
            whole, 10 - some)


def test_a_crafted_model_holds_the_honest_one() -> None:
    view, _ = attacked()
    layer = view.model.build().get_submodule("net")
    with seeded(5):
        honest = start(CONV, build(Ref("defenses", "none")), None, SHAPE, CLASSES).build()
    torch.testing.assert_close(layer.get_submodule("net").state_dict(), honest.get_submodule("net").state_dict())


def test_gradients_that_were_changed_a_little_are_read_nearly() -> None:
    view, images = attacked("gradient-pruning")
    found = ImprintAttack().run(view, {}, generator(0))
    assert hits(found.images.flatten(1) * 2 - 1, images, 0.1) >= 8


def noised(update: Any) -> dict[str, Tensor]:
    return {name: value + value.abs().max() * torch.randn(value.shape, generator=generator(1))
            for name, value in update.values.items()}


@pytest.mark.parametrize("spoil", [noised, lambda update: {k: torch.zeros_like(v) for k, v in update.values.items()}])
def test_what_says_nothing_is_no_image(spoil: Callable[[Any], dict[str, Tensor]]) -> None:
    view, _ = attacked()
    update = replace(view.update, values=spoil(view.update))
    spoilt = View(replace(view.sealed, update=update))
    found = ImprintAttack().run(spoilt, {}, generator(0))
    check_reconstruction(found, spoilt)
    assert "0 of 10" in found.note


def test_an_update_without_the_layer_is_not_applicable() -> None:
    view, _ = attacked()
    values = {name: value for name, value in view.update.values.items() if "bins" not in name}
    with pytest.raises(NotApplicable, match="put before the model"):
        ImprintAttack().run(View(replace(view.sealed, update=replace(view.update, values=values))), {}, generator(0))


@pytest.mark.parametrize(("params", "said"), [({"bins": 0}, "bins is 0"), ({"measurements": 0}, "measurements is 0"),
                                              ({"bins": 2, "measurements": 3}, "at most as many")])
def test_impossible_parameters_are_told(params: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImprintAttack(**params)
