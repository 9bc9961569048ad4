import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ppbench.data import Images, SplitSizes, split
from ppbench.datasets.photos import Photos
from ppbench.defenses import bn_synthesis
from ppbench.defenses._bn_statistics import (
    Moments,
    bn_layers,
    distance,
    group_statistics,
    per_image,
    running_statistics,
)
from ppbench.defenses._bn_teacher import conv_net, fresh_teacher, train
from ppbench.defenses.bn_synthesis import BnSynthesis, single_class_batches
from ppbench.errors import UserError
from ppbench.seeding import generator, seeded, threads
from ppbench.victim import Recipe, accuracy, start
from ppbench.victim import train as train_victim

TINY: dict[str, Any] = {"steps": 3, "teacher_epochs": 1}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more, and results are to the bit."""
    with threads(1):
        yield


def coloured(labels: list[int], channels: int = 3, side: int = 16, seed: int = 0) -> Images:
    """Noise around one level a class, so that a small network learns the classes at once."""
    classes, rng = torch.tensor(labels), generator(seed)
    level = torch.rand(1 + max(labels), channels, 1, 1, generator=rng)
    pixels = (level[classes] + 0.2 * torch.randn(len(labels), channels, side, side, generator=rng)).clamp(0, 1)
    return Images(pixels, classes, torch.arange(len(labels)))


def teacher_of(private: Images, epochs: int = 2) -> nn.Module:
    with seeded(0) as rng:
        net = fresh_teacher("ppbench.defenses._bn_teacher:conv_net", private.shape, int(private.labels.max()) + 1)
        train(net, private.pixels, private.labels, epochs, rng)
    return net.requires_grad_(False)


def inputs_of_bn(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Catch what goes into every batch-norm layer, with plain hooks, in float64."""
    caught: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _, args, __: caught.append(args[0].double()))
             for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    return caught


def by_hand(net: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and biased variance a channel over all images and places at once."""
    axes = [(0, *range(2, values.ndim)) for values in inputs_of_bn(net, images)]
    return [(values.mean(axis), values.var(axis, correction=0))
            for values, axis in zip(inputs_of_bn(net, images), axes, strict=True)]


# ---- statistics


@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_class_statistics_are_those_of_the_whole_class(chunk: int) -> None:
    private = coloured([0, 1, 2, 2, 0, 1, 2, 0, 2, 1, 2])
    net = teacher_of(private)
    found = group_statistics(net, private.pixels, private.labels, 3, chunk)
    assert len(found) == len(bn_layers(net)) == 3
    for label in range(3):
        expected = by_hand(net, private.pixels[private.labels == label])
        for layer, (mean, variance) in zip(found, expected, strict=True):
            torch.testing.assert_close(layer.mean[label].double(), mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(layer.variance[label].double(), variance, atol=1e-5, rtol=1e-5)


def test_statistics_of_a_layer_without_places() -> None:
    with seeded(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    images, group = torch.rand(6, 3, 2, 2, generator=generator(1)), torch.tensor([0, 0, 1, 0, 1, 0])
    (layer,) = group_statistics(net, images, group, 2)
    for label in range(2):
        ((mean, variance),) = by_hand(net, images[group == label])
        torch.testing.assert_close(layer.mean[label].double(), mean, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(layer.variance[label].double(), variance, atol=1e-6, rtol=1e-5)


def test_statistics_of_a_class_of_one_image() -> None:
    private = coloured([0, 0, 0, 1])
    net = teacher_of(private)
    found = group_statistics(net, private.pixels, private.labels, 2)
    for layer, (mean, variance) in zip(found, by_hand(net, private.pixels[3:]), strict=True):
        torch.testing.assert_close(layer.mean[1].double(), mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.variance[1].double(), variance, atol=1e-5, rtol=1e-5)


def test_the_moments_have_the_right_gradient() -> None:
    values = torch.rand(2, 3, 4, dtype=torch.float64, generator=generator(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(per_image(x)), (values,))


def test_running_statistics_are_the_teachers_own_for_every_class() -> None:
    private = coloured([0, 1, 0, 1])
    net = teacher_of(private)
    found = running_statistics(net, private.pixels[:1], 5)
    for layer, bn in zip(found, bn_layers(net), strict=True):
        assert bn.running_mean is not None
        assert bn.running_var is not None
        assert torch.equal(layer.mean, bn.running_mean.repeat(5, 1))
        assert torch.equal(layer.variance, bn.running_var.repeat(5, 1))


def test_distance_is_a_sum_of_unsquared_norms() -> None:
    now = [Moments(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])),
           Moments(torch.tensor([[5.0], [0.0]]), torch.tensor([[1.0], [0.0]]))]
    zero = [Moments(torch.zeros_like(m.mean), torch.zeros_like(m.variance)) for m in now]
    assert distance(now, zero).tolist() == [5 + 1 + 5 + 1, 2]
    assert distance(now, now).tolist() == [0, 0]


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
    group, batch_class = torch.tensor([0, 1, 0, 2, 0, 1, 2]), torch.tensor([2, 0, 2])
    targets = group_statistics(net, private.pixels, private.labels, 3)
    wanted = [Moments(*(part[batch_class] for part in layer)) for layer in targets]
    loss = defense.loss(net, values, batch_class[group], group, wanted)
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

    def caught(net: nn.Module, *args: Any) -> None:
        train(net, *args)
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

    def loss(self: BnSynthesis, net: nn.Module, values: Tensor, labels: Tensor, group: Tensor,
             wanted: list[Moments]) -> Tensor:
        step = len(iterates)
        iterates.append(values.detach().clone())
        moving = (values - 0.3).pow(2).sum() * 1e-6
        return torch.tensor([float(step != lowest[0]), float(step != lowest[1])]) + moving - moving.detach()

    monkeypatch.setattr(BnSynthesis, "loss", loss)
    monkeypatch.setattr(bn_synthesis, "shifted", lambda values, rng: values)
    private = coloured([0, 1, 1, 0, 1])
    release = BnSynthesis(steps=8, teacher_epochs=1).protect(private, None, generator(0))
    assert not torch.equal(iterates[2], iterates[-1])
    for label, step in lowest.items():
        rows = private.labels == label
        assert torch.equal(release.images[rows], (iterates[step][rows] + 1) / 2)


# ---- the release


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stats", ["class", "model"])
def test_labels_mirror_the_private_ones_and_images_are_images(channels: int, stats: Any) -> None:
    private = coloured([3, 0, 0, 3, 1, 3, 0], channels)  # class 2 is absent, class 1 has one image
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


@pytest.mark.parametrize("together", [1, 4, 512])
def test_batches_in_one_pass_or_one_by_one(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    """Memory decides how many batches share a forward pass; every image is optimised either way."""
    monkeypatch.setattr(bn_synthesis, "_TOGETHER", together)
    monkeypatch.setattr(bn_synthesis, "shifted", lambda values, rng: values)  # else each pass shifts its own way
    release = BnSynthesis(**TINY, batch=2).protect(coloured([0, 1, 1, 0, 1]), None, generator(0))
    monkeypatch.setattr(bn_synthesis, "_TOGETHER", 2)
    again = BnSynthesis(**TINY, batch=2).protect(coloured([0, 1, 1, 0, 1]), None, generator(0))
    torch.testing.assert_close(release.images, again.images, atol=1e-3, rtol=0)


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


# ---- the teacher


def test_the_teacher_learns() -> None:
    private, test = coloured([0, 1, 2, 3] * 8), coloured([0, 1, 2, 3] * 8)
    net = teacher_of(private, epochs=20)
    assert not net.training
    assert (net(test.pixels).argmax(1) == test.labels).float().mean() > 0.9


@pytest.mark.parametrize("n", [2, 65, 129])
def test_no_batch_of_one_image_reaches_batch_norm(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    private, sizes = coloured([0, 1] * (n // 2) + [0] * (n % 2)), []
    net = nn.Sequential(conv_net(2))
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    train(net, private.pixels, private.labels, 1, generator(0))
    assert sum(sizes) == n
    assert min(sizes) > 1


@pytest.mark.parametrize(("teacher", "channels"), [("torchvision:resnet18", 3), ("timm:resnet10t", 1)])
def test_library_networks_can_teach(teacher: str, channels: int) -> None:
    private = coloured([0, 1, 0, 1], channels, side=32)
    defense = BnSynthesis(steps=2, teacher_epochs=1, teacher=teacher)
    defense.check(private.shape)
    assert defense.protect(private, None, generator(0)).images.shape == private.pixels.shape


# ---- bad input


@pytest.mark.parametrize(("teacher", "shape", "why"), [
    ("timm:vit_tiny_patch16_224", (3, 32, 32), "has no batch norm"),
    ("torchvision:resnet18", (1, 32, 32), "does not take images of shape"),
    ("torchvision:no_such_net", (3, 32, 32), "cannot be built"),
    ("no_such_module:net", (3, 32, 32), "cannot be built"),
])
def test_a_teacher_that_cannot_serve_is_refused_early(teacher: str, shape: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        BnSynthesis(teacher=teacher).check(shape)


def test_every_private_image_has_a_row_however_few_are_asked_for() -> None:
    quick = BnSynthesis(images=3, steps=1, teacher_epochs=1)
    assert quick.protect(coloured([0, 1, 0, 1]), None, generator(0)).labels.tolist() == [0, 1, 0, 1]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="fewer than 2 private images"):
        BnSynthesis().protect(coloured([0]), None, generator(0))


def test_a_loss_that_is_never_finite_is_said() -> None:
    private = coloured([0, 1, 0, 1])
    broken = Images(torch.full_like(private.pixels, float("nan")), private.labels, private.ids)
    with pytest.raises(UserError, match="no finite loss"):
        BnSynthesis(**TINY).protect(broken, None, generator(0))


@pytest.mark.parametrize("bad", [{"images": -1}, {"steps": 0}, {"batch": 0}, {"teacher_epochs": 0}, {"lr": 0.0},
                                 {"lr": float("nan")}, {"bn_weight": -1.0}, {"tv_weight": float("inf")}])
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
