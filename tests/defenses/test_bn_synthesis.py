import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bn_networks import by_hand, coloured, teacher_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppbench.data import Images, SplitSizes, split
from ppbench.datasets.photos import Photos
from ppbench.defenses import _bn_passes, bn_synthesis
from ppbench.defenses._bn_memory import activations, batches_at_once
from ppbench.defenses._bn_passes import Iterate, passes, single_class_batches, start_images
from ppbench.defenses._bn_statistics import (
    Moments,
    group_statistics,
)
from ppbench.defenses._bn_teacher import train
from ppbench.defenses.bn_synthesis import BnSynthesis
from ppbench.errors import UserError
from ppbench.partial import Partial, kept_in
from ppbench.seeding import generator, seeded, threads
from ppbench.victim import Recipe, accuracy, start
from ppbench.victim import train as train_victim

TINY: dict[str, Any] = {"steps": 3, "teacher_epochs": 1}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more, and results are to the bit."""
    with threads(1):
        yield

# ---- where to start


def test_natural_noise_falls_with_frequency_and_its_channels_go_together() -> None:
    white, natural = (start_images(kind, 64, (3, 32, 24), generator(0)) for kind in ("white", "natural"))
    for images in (white, natural):
        assert images.shape == (64, 3, 32, 24)
        assert images.abs().max() <= 1
        assert len(images.flatten(1).unique(dim=0)) == 64
    step = [images.diff(dim=3).std() / images.std() for images in (white, natural)]
    assert step[0] > 1.3
    assert step[1] < 1.0
    together = [torch.corrcoef(images.transpose(0, 1).flatten(1))[0, 1] for images in (white, natural)]
    assert abs(together[0]) < 0.05
    assert together[1] > 0.5


@pytest.mark.parametrize("more", [{"match": "relative", "bn_weight": 1.0}, {"start": "natural"}])
def test_other_recipes_reach_the_statistics_too(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    seen = watch_loss(monkeypatch)
    BnSynthesis(steps=40, teacher_epochs=20, **more).protect(coloured([0, 1, 2] * 8), None, generator(0))
    assert (torch.stack(seen[-3:]).min(0).values < 0.6 * seen[0]).all()


# ---- batches


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 9))
def test_batches_are_of_one_class_equal_and_no_larger_than_asked(labels: list[int], size: int) -> None:
    classes = torch.tensor(labels).unique(return_inverse=True)[1]
    batch, batch_class = single_class_batches(classes, size)
    assert torch.equal(batch_class[batch], classes)
    sizes = batch.bincount(minlength=len(batch_class))
    assert sizes.min() >= 1
    assert sizes.max() <= size
    for label in classes.unique():
        own = sizes[batch_class == label]
        assert own.max() - own.min() <= 1
        assert len(own) == -(-int((classes == label).sum()) // size)


# ---- objective


def objective_by_hand(defense: BnSynthesis, net: nn.Module, values: Tensor, label: int,
                      wanted: list[tuple[Tensor, Tensor]]) -> float:
    """One batch of one class, with loops over images and no library loss."""
    total = 0.0
    for (mean, variance), (m, v) in zip(by_hand(net, (values + 1) / 2), wanted, strict=True):
        total += defense.bn_weight * float(((mean - m) ** 2).sum().sqrt() + ((variance - v) ** 2).sum().sqrt())
    with torch.no_grad():
        logits = net((values + 1) / 2).double()
    for image, row in zip(values.double(), logits, strict=True):
        down, right = image[:, 1:] - image[:, :-1], image[:, :, 1:] - image[:, :, :-1]
        each = defense.ce_weight * float(row.exp().sum().log() - row[label])
        each += defense.tv_weight * float((down**2).mean() + (right**2).mean())
        each += defense.l2_weight * float((image**2).mean())
        total += each / len(values)
    return total


def test_the_objective_is_that_of_each_batch_alone() -> None:
    private = coloured([0, 0, 1, 1, 1, 2])
    net = teacher_of(private)
    defense = BnSynthesis(bn_weight=3.0, ce_weight=2.0, tv_weight=5.0, l2_weight=7.0)
    values = torch.rand(7, 3, 16, 16, generator=generator(3)) * 2 - 1
    sizes, batch_class = [3, 2, 2], torch.tensor([2, 0, 2])
    group = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    targets = group_statistics(net, private.pixels, private.labels, 3)
    wanted = [Moments(*(part[batch_class] for part in layer)) for layer in targets]
    loss = defense.loss(net, values, batch_class[group], sizes, wanted)
    for number, label in enumerate(batch_class.tolist()):
        hand = by_hand(net, private.pixels[private.labels == label])
        expected = objective_by_hand(defense, net, values[group == number], label, hand)
        assert loss[number].item() == pytest.approx(expected, rel=1e-4)


def watch_loss(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    original = BnSynthesis.loss

    def loss(self: BnSynthesis, *args: Any) -> Tensor:
        value = original(self, *args)
        seen.append(value.detach())
        return value

    monkeypatch.setattr(BnSynthesis, "loss", loss)
    return seen


@pytest.mark.parametrize("stats", ["class", "model"])
def test_the_loss_falls_in_every_batch(monkeypatch: pytest.MonkeyPatch, stats: Any) -> None:
    seen = watch_loss(monkeypatch)
    # running statistics start at mean 0, variance 1 and need some 40 batches to forget it
    defense = BnSynthesis(steps=40, teacher_epochs=40, stats=stats)
    defense.protect(coloured([0, 1, 2] * 8), None, generator(0))
    assert len(seen) == 40
    assert (torch.stack(seen[-3:]).min(0).values < 0.5 * seen[0]).all()


def test_the_release_comes_nearer_to_the_class_statistics_than_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured from outside: the teacher is caught, the statistics taken by hand."""
    private, nets = coloured([0, 1] * 12), []

    def caught(net: nn.Module, *args: Any, **named: Any) -> None:
        train(net, *args, **named)
        nets.append(net)

    monkeypatch.setattr(bn_synthesis, "train", caught)
    release = BnSynthesis(steps=60, teacher_epochs=3).protect(private, None, generator(0))
    noise = torch.randn(private.pixels.shape, generator=generator(1)).clamp(-1, 1) / 2 + 0.5

    def gap(images: Tensor, label: int) -> float:
        pairs = zip(by_hand(nets[0], images), by_hand(nets[0], private.pixels[private.labels == label]), strict=True)
        return sum(float((a - b).norm()) for now, wanted in pairs for a, b in zip(now, wanted, strict=True))

    for label in (0, 1):
        rows = release.labels == label
        assert gap(release.images[rows], label) < 0.3 * gap(noise[rows], label)
        assert gap(release.images[rows], label) < 0.5 * gap(release.images[rows], 1 - label)


# ---- the best iterate


def test_each_batch_keeps_its_best_iterate_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest = {0: 2, 1: 5}  # at which step each of the two batches is best
    iterates: list[Tensor] = []

    def loss(self: BnSynthesis, net: nn.Module, values: Tensor, labels: Tensor, sizes: list[int],
             wanted: list[Moments]) -> Tensor:
        step = len(iterates)
        in_order = torch.empty_like(values)
        in_order[torch.cat([torch.nonzero(private.labels == label).flatten() for label in (0, 1)])] = values.detach()
        iterates.append(in_order)
        moving = (values - 0.3).pow(2).sum() * 1e-6
        return torch.tensor([float(step != lowest[0]), float(step != lowest[1])]) + moving - moving.detach()

    private = coloured([0, 1, 1, 0, 1])
    monkeypatch.setattr(BnSynthesis, "loss", loss)
    monkeypatch.setattr(bn_synthesis, "shifted", lambda values, rng: values)
    release = BnSynthesis(steps=8, teacher_epochs=1).protect(private, None, generator(0))
    assert not torch.equal(iterates[2], iterates[-1])
    for label, step in lowest.items():
        rows = private.labels == label
        assert torch.equal(release.images[rows], (iterates[step][rows] + 1) / 2)


# ---- the release


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stats", ["class", "model"])
def test_labels_mirror_the_private_ones_and_images_are_images(channels: int, stats: Any) -> None:
    private = coloured([3, 0, 0, 3, 1, 3, 2, 2, 0], channels)  # class 1 has one image
    release = BnSynthesis(**TINY, stats=stats).protect(private, None, generator(0))
    assert torch.equal(release.labels, private.labels)
    assert release.source is None
    assert release.images.shape == private.pixels.shape
    assert release.images.dtype == torch.float32
    assert torch.isfinite(release.images).all()
    assert release.images.min() >= 0
    assert release.images.max() <= 1
    assert not release.images.requires_grad
    assert len(release.images.flatten(1).unique(dim=0)) == len(private)


def test_more_images_go_round_the_private_labels_again() -> None:
    private = coloured([0, 1, 1, 0])
    release = BnSynthesis(**TINY, images=10, batch=2).protect(private, None, generator(0))
    assert release.labels.tolist() == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert len(release.images) == 10


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_passes_make_every_image_once(labels: list[int], size: int, together: int) -> None:
    classes = torch.tensor(labels).unique(return_inverse=True)[1]
    every = passes(classes, size, together, generator(0))
    assert torch.cat([one.rows for one in every]).sort().values.tolist() == list(range(len(classes)))
    assert len({one.seed for one in every}) == len(every)
    for one in every:
        assert len(one.sizes) == len(one.classes) <= together
        for rows, label in zip(one.rows.split(one.sizes), one.classes, strict=True):
            assert 0 < len(rows) <= size
            assert classes[rows].unique().tolist() == [label]


@pytest.mark.parametrize("together", [1, 4, 512])
def test_every_image_is_optimised_however_many_share_a_pass(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(bn_synthesis, "_TOGETHER", {"cpu": together})
    seen = watch_loss(monkeypatch)
    private = coloured([0, 1, 1, 0, 1])
    release = BnSynthesis(steps=60, teacher_epochs=1, batch=2).protect(private, None, generator(0))
    assert len(seen) == 60 * {1: 3, 4: 2, 512: 1}[together]
    for label in (0, 1):  # noise has mean 0.5
        wanted = private.pixels[private.labels == label].mean((0, 2, 3))
        found = release.images[release.labels == label].mean((2, 3))
        assert (found - wanted).abs().mean() < 0.5 * (0.5 - wanted).abs().mean() + 0.02


# ---- Adam


def test_the_descent_is_adams() -> None:
    values, goal = torch.rand(4, 3, 2, 2, generator=generator(0)) * 0.2, torch.rand(4, 3, 2, 2, generator=generator(1))
    theirs = values.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], 0.01, betas=(0.5, 0.99))
    now = Iterate.start(values.clone(), 1, generator(0))
    for _ in range(7):
        (gradient,) = torch.autograd.grad(((now.values - goal) ** 4).sum(), now.values)
        now.descend(gradient, 0.01)
        optimiser.zero_grad()
        ((theirs - goal) ** 4).sum().backward()
        optimiser.step()
    torch.testing.assert_close(now.values.detach(), theirs.detach(), atol=1e-6, rtol=1e-5)


# ---- a killed run


class Kill(BaseException):
    """As good as a signal: no handler for errors sees it."""


@pytest.mark.parametrize(("every", "at"), [(0.0, 1), (0.0, 5), (0.0, 23), (0.0, 29), (1e9, 23)])
def test_a_killed_synthesis_goes_on_to_the_same_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                       every: float, at: int) -> None:
    """Three passes of ten steps, killed in the first, the last, or never saved; saved at every step otherwise."""
    monkeypatch.setattr(bn_synthesis, "_TOGETHER", {"cpu": 2})
    monkeypatch.setattr(_bn_passes, "EVERY", every)
    private = coloured([0, 1, 1, 0, 1])
    defense = BnSynthesis(steps=10, batch=2, teacher_epochs=1, labels="teacher")
    whole = defense.protect(private, None, generator(0))
    seen, trained = watch_loss(monkeypatch), []
    original = BnSynthesis.loss

    def killed(self: BnSynthesis, *args: Any) -> Tensor:
        if len(seen) == at:
            raise Kill
        return original(self, *args)

    monkeypatch.setattr(bn_synthesis, "train", lambda *args, **named: (trained.append(1), train(*args, **named)))
    with kept_in(tmp_path), monkeypatch.context() as patch:
        patch.setattr(BnSynthesis, "loss", killed)
        with pytest.raises(Kill):
            defense.protect(private, None, generator(0))
    seen.clear()
    with kept_in(tmp_path):
        again = defense.protect(private, None, generator(0))
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.extras["logits"], whole.extras["logits"])
    assert len(trained) == 1
    assert len(seen) == (30 - at if every == 0 else 30)  # every state was saved, so that no step is done twice


def test_synthesis_reports_how_far_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    monkeypatch.setattr(Partial, "report", lambda self, done, total, what: said.append((done, total, what)))
    monkeypatch.setattr(bn_synthesis, "_TOGETHER", {"cpu": 2})
    BnSynthesis(**TINY, batch=2).protect(coloured([0, 1, 1, 0, 1]), None, generator(0))
    images = [(done, total) for done, total, what in said if what == "images"]
    assert images == sorted(images)
    assert images[-1] == (5, 5)
    assert {what for _, _, what in said} == {"teacher epochs", "images"}


# ---- the teacher's logits


def test_the_teachers_logits_are_released(monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[nn.Module] = []
    monkeypatch.setattr(bn_synthesis, "train", lambda *args, **named: (nets.append(args[0]), train(*args, **named)))
    private = coloured([0, 1, 2, 0, 1, 2])
    defense = BnSynthesis(steps=5, teacher_epochs=3, labels="teacher", temperature=3.0)
    release = defense.protect(private, None, generator(0))
    logits = release.extras["logits"]
    assert logits.dtype == torch.float32
    assert logits.shape == (6, 3)
    with torch.no_grad():
        torch.testing.assert_close(logits, nets[0](release.images), atol=1e-5, rtol=1e-4)
    raised = (logits.double() / 3).exp()
    assert release.soft_labels is not None
    torch.testing.assert_close(release.soft_labels.double(), raised / raised.sum(1, keepdim=True), atol=1e-6, rtol=0)
    assert release.temperature == 3
    assert torch.equal(release.labels, private.labels)
    hard = replace(defense, labels="hard").protect(private, None, generator(0))
    assert torch.equal(hard.images, release.images)
    assert (hard.extras, hard.soft_labels, hard.temperature) == ({}, None, 1)


# ---- bfloat16


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_is_near_to_float32_and_repeatable() -> None:
    private = coloured([0, 1] * 12)
    net = teacher_of(private, 5)
    targets = group_statistics(net, private.pixels, private.labels, 2)
    values = torch.rand(24, 3, 16, 16, generator=generator(3)) * 2 - 1
    plain, amp = (BnSynthesis(amp=amp).loss(net, values, torch.arange(2).repeat_interleave(12), [12, 12], targets)
                  for amp in (False, True))
    assert not torch.equal(plain, amp)
    torch.testing.assert_close(plain, amp, atol=0.02, rtol=0.02)
    first, second = (BnSynthesis(**TINY, amp=True).protect(private, None, generator(0)).images for _ in range(2))
    assert torch.equal(first, second)


def test_there_is_no_key_and_test_images_are_sent_as_they_are() -> None:
    images = torch.rand(2, 3, 16, 16, generator=generator(0))
    assert BnSynthesis.key_scopes == ()
    assert torch.equal(BnSynthesis().query(images, None, generator(0)), images)


# ---- randomness


def test_the_generator_alone_decides() -> None:
    private, defense = coloured([0, 1, 0, 1]), BnSynthesis(**TINY)
    releases = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        with seeded(global_seed):
            releases.append(defense.protect(private, None, generator(seed)).images)
    assert torch.equal(releases[0], releases[1])
    assert not torch.equal(releases[0], releases[2])


def draws() -> list[float]:
    return [torch.rand(()).item(), random.random(), float(np.random.rand())]  # noqa: NPY002 (what libraries use)


def test_global_generators_and_the_private_images_are_untouched() -> None:
    private = coloured([0, 1, 0, 1])
    pixels = private.pixels.clone()
    with seeded(7):
        expected = draws()
    with seeded(7):
        BnSynthesis(**TINY).check(private.shape)
        BnSynthesis(**TINY).protect(private, None, generator(0))
        assert draws() == expected
    assert torch.equal(private.pixels, pixels)


def test_it_works_where_the_caller_switched_gradients_off() -> None:
    private, defense = coloured([0, 1, 0, 1]), BnSynthesis(**TINY)
    with torch.no_grad():
        off = defense.protect(private, None, generator(0)).images
    assert torch.equal(off, defense.protect(private, None, generator(0)).images)


# ---- bad input


def test_a_class_without_images_has_no_statistics() -> None:
    gap = coloured([0, 2, 0, 2])
    with pytest.raises(UserError, match=r"no statistics of class 1.*stats=model"):
        BnSynthesis(**TINY).protect(gap, None, generator(0))
    assert BnSynthesis(**TINY, stats="model").protect(gap, None, generator(0)).labels.tolist() == [0, 2, 0, 2]


def test_a_batch_of_one_image_with_one_place_has_no_variance() -> None:
    private = coloured([0, 1, 0], side=16)  # the third layer has 2 x 2 places at 16 pixels, 1 at 8
    BnSynthesis(**TINY).protect(private, None, generator(0))
    with pytest.raises(UserError, match=r"batch of one image.*raise batch"):
        BnSynthesis(**TINY).protect(coloured([0, 1, 0], side=8), None, generator(0))


def test_too_little_memory_is_said_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bn_synthesis, "free", lambda device: 1e5)
    with pytest.raises(UserError, match=r"GiB are free: lower batch"):
        BnSynthesis(**TINY).protect(coloured([0, 1, 0, 1]), None, generator(0))


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
                                   torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_is_refused_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def loss(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr(BnSynthesis, "loss", loss)
    with pytest.raises(UserError, match=r"ran out of memory.*lower batch"):
        BnSynthesis(**TINY).protect(coloured([0, 1, 0, 1]), None, generator(0))


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(*_: Any) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(BnSynthesis, "loss", loss)
    with pytest.raises(RuntimeError, match="a bug"):
        BnSynthesis(**TINY).protect(coloured([0, 1, 0, 1]), None, generator(0))


def test_the_estimate_of_memory_counts_every_layer_once() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), nn.Flatten(), nn.Linear(8 * 16, 5))
    expected = 4 * (2 * 8 * 16 + 8 * 16 + 5)
    assert activations(net, torch.zeros(1, 3, 4, 4)) == expected
    assert batches_at_once(1000, 64, 256) == 4
    assert batches_at_once(2 << 30, 64, 256) == 1
    assert batches_at_once((2 << 30) // 128, 64, 256) == 2


@pytest.mark.parametrize(("teacher", "shape", "why"), [
    ("timm:vit_tiny_patch16_224", (3, 32, 32), "has no batch norm"),
    ("torchvision:resnet18", (1, 32, 32), "does not take images of shape"),
    ("torchvision:no_such_net", (3, 32, 32), "cannot be built"),
    ("no_such_module:net", (3, 32, 32), "cannot be built"),
])
def test_a_teacher_that_cannot_serve_is_refused_early(teacher: str, shape: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        BnSynthesis(teacher=teacher).check(shape)


@pytest.mark.parametrize(("images", "labels"), [(3, [0, 1, 0]), (0, [0, 1, 0, 1]), (5, [0, 1, 0, 1, 0])])
def test_as_many_are_released_as_are_asked_for(images: int, labels: list[int]) -> None:
    quick = BnSynthesis(images=images, steps=1, teacher_epochs=1)
    assert quick.protect(coloured([0, 1, 0, 1]), None, generator(0)).labels.tolist() == labels


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="fewer than 2 private images"):
        BnSynthesis().protect(coloured([0]), None, generator(0))


def test_a_loss_that_is_never_finite_is_said() -> None:
    private = coloured([0, 1, 0, 1])
    broken = Images(torch.full_like(private.pixels, float("nan")), private.labels, private.ids)
    with pytest.raises(UserError, match="no finite loss"):
        BnSynthesis(**TINY).protect(broken, None, generator(0))


@pytest.mark.parametrize("bad", [{"images": -1}, {"steps": 0}, {"batch": 0}, {"teacher_epochs": 0}, {"lr": 0.0},
                                 {"lr": float("nan")}, {"temperature": 0.0}, {"bn_weight": -1.0},
                                 {"tv_weight": float("inf")}])
def test_parameters_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        BnSynthesis(**bad)


# ---- use


@pytest.mark.slow
def test_a_victim_trained_on_the_release_recognises_real_photographs() -> None:
    parts = split(Photos().pools(32), SplitSizes(private=160, public=8, test=144), 0)
    defense, recipe = BnSynthesis(steps=100), Recipe(epochs=20)
    release = defense.protect(parts.private, None, generator(0))
    with seeded(0):
        model = start(recipe, defense, None, parts.private.shape, parts.classes)
    model = train_victim(model, release, recipe, generator(0))
    assert accuracy(model, parts.test.pixels, parts.test.labels) > 0.25  # chance is 1/8
