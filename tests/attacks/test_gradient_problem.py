"""Problems: how images are held against gradients, by tapes and by torch's own derivatives."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
from gradient_problems import CLASSES, CONV, IMAGES, LABELS, RESNET, SHAPE, VIT, batches, made
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, linear

from ppbench.attacks._gradient_problem import Client, Problem, Taped, Unrolled, follows
from ppbench.attacks._labels import errors_of
from ppbench.codec import Tensors
from ppbench.model import Model, Normalised
from ppbench.nets import convnet
from ppbench.seeding import generator
from ppbench.updates import prepare


@pytest.mark.parametrize(("model", "client", "taped"), [
    (CONV, Client(2), True),
    (CONV, Client(2, label_smoothing=0.3), True),
    (VIT, Client(1), True),
    (RESNET, Client(3, bn_train=True), True),
    (CONV, Client(2, local_steps=3, learning_rate=0.5), False),
    (RESNET, Client(3, local_steps=2, learning_rate=0.1, bn_train=True), False),
    (CONV, Client(6, part=2), True),
    (RESNET, Client(6, part=3, bn_train=True), False),
    (RESNET, Client(6, part=3, bn_train=True, local_steps=2, learning_rate=0.1), False),
])
def test_true_images_explain_what_was_sent(model: Model, client: Client, taped: bool) -> None:
    problem = made(model, client)
    assert problem.taped == taped
    explained = problem.explainer(torch.float64)(batches(client).double(), problem.labels)
    assert explained.cosine().max() < 1e-7
    assert explained.euclidean().max() < 1e-6
    others = problem.explainer()(batches(client).flip(3), problem.labels)
    assert others.cosine().min() > 1e-4
    assert others.euclidean().min() > 1e-4


@pytest.mark.parametrize("model", [CONV, VIT])
@pytest.mark.parametrize("taped", [True, False])
def test_distances_and_slopes_agree_with_a_plain_loop(model: Model, taped: bool) -> None:
    problem = made(model, Client(2), taped=taped)
    images = torch.rand(3, 2, *SHAPE, generator=generator(0), dtype=torch.float64).requires_grad_()
    explained = problem.explainer(torch.float64)(images, problem.labels)
    net = problem.net.double()
    cosines, distances = [], []
    for number in range(3):
        loss = cross_entropy(net(images[number]), problem.labels[number])
        grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        flat = torch.cat([g.flatten() for g in grads])
        true = torch.cat([problem.given[name][number].flatten() for name, _ in net.named_parameters()]).double()
        cosines.append(1 - cosine_similarity(flat, true, dim=0))
        distances.append((flat - true).square().sum() / true.square().sum())
    for found, expected in ((explained.cosine(), cosines), (explained.euclidean(), distances)):
        torch.testing.assert_close(found, torch.stack(expected))
        slopes = [torch.autograd.grad(values.sum(), images, retain_graph=True)[0]
                  for values in (found, torch.stack(expected))]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-2, atol=1e-3 * float(slopes[1].abs().max()))


def test_shares_of_classes_are_goals_too() -> None:
    problem = made(CONV, Client(2))
    shares = nn.functional.one_hot(problem.labels, CLASSES).float()
    for kind in (Taped, Unrolled):
        explained = kind(problem, torch.float32)
        torch.testing.assert_close(explained(batches(Client(2)), shares).product,
                                   explained(batches(Client(2)), problem.labels).product)


def test_rows_and_repeats() -> None:
    problem = made(CONV, Client(2))
    whole = problem.explainer()(batches(Client(2)), problem.labels).product
    some = problem[torch.tensor([2, 0])]
    torch.testing.assert_close(some.explainer()(batches(Client(2))[[2, 0]], some.labels).product, whole[[2, 0]])
    again = problem[torch.tensor([1])].again(4)
    assert len(again) == 4
    found = again.explainer()(batches(Client(2))[[1, 1, 0, 1]], again.labels).product
    torch.testing.assert_close(found[[0, 1, 3]], whole[[1, 1, 1]])
    assert (found[2] - whole[1]).abs() > 1e-3
    assert len(again[torch.tensor([0, 1])]) == 2


def test_features_and_statistics_are_those_of_the_network() -> None:
    problem = made(RESNET, Client(2))
    net = problem.net
    assert isinstance(net, Normalised)
    seen: list[Tensor] = []
    handles = [module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
               for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    net(batches(Client(2))[1])
    for handle in handles:
        handle.remove()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    expected = 0.0
    for number, (x, norm) in enumerate(zip(seen, norms, strict=True)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        strayed = ((x.mean((0, 2, 3)) - norm.running_mean).norm()
                   + (x.var((0, 2, 3), correction=0) - norm.running_var).norm())
        expected += float(strayed) * (10 if number == 0 else 1)
    explained = problem.explainer()(batches(Client(2)), problem.labels)
    assert explained.strays is not None
    assert explained.strays()[1].item() == pytest.approx(expected, rel=1e-4)
    assert explained.features is not None
    assert explained.features.shape == (3, 2, 64)


def test_positions_are_told_apart() -> None:
    problem = made(VIT, Client(1))
    for images, least, most in ((batches(Client(1)), -1e-6, 1e-6), (batches(Client(1)).flip(3), 1e-5, 2)):
        positions = problem.explainer(torch.float64)(images.double(), problem.labels).positions
        assert positions is not None
        assert least < positions.min() <= positions.max() < most


class Odd(nn.Module):
    """A layer that nobody knows, in a network."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.body = nn.Parameter(torch.ones(3, 1, 1)), convnet(CLASSES, width=4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(images * self.scale)
        return logits


class Lying(nn.Module):
    """What uses a layer's weights behind its back, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(768, 16), nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found = self.first(images.flatten(1)) + linear(images.flatten(1), 9 * self.first.weight.square())
        logits: Tensor = self.last(found.tanh())
        return logits


@pytest.mark.parametrize("made_up", [Odd, Lying])
def test_networks_that_a_tape_cannot_follow_are_found_out(made_up: Callable[[], nn.Module]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = made_up()
    given: Tensors = {name: torch.randn(3, *value.shape, generator=generator(0))
                      for name, value in net.named_parameters()}
    problem = Problem(net, given, LABELS.reshape(3, 2), Client(2))
    assert not follows(problem, IMAGES[:2])


def test_pretrained_families_are_followed() -> None:
    for name in ("test_resnet", "test_vit", "resnet18", "deit_tiny_patch16_224"):
        net = timm.create_model(name, num_classes=CLASSES)
        prepare(net, False)
        given = {key: torch.randn(1, *value.shape, generator=generator(0)) for key, value in net.named_parameters()}
        side = 32 if name == "resnet18" else 224 if "deit" in name else 160
        problem = Problem(net, given, torch.tensor([[1]]), Client(1))
        assert follows(problem, torch.rand(1, 3, side, side, generator=generator(1))), name


@pytest.mark.parametrize("taped", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_told_errors_are_what_the_last_bias_tells(taped: bool, sharpness: float) -> None:
    """Held against a loop: at the true images nothing is left, however sure the network is of them."""
    plain = made(CONV, Client(1), taped=taped)
    with torch.no_grad():
        plain.net.get_submodule("net.1").weight.mul_(sharpness)  # type: ignore[union-attr,operator]
    given = sent(plain.net, batches(Client(1))[:, 0], plain.labels[:, 0])
    errors = errors_of(plain.net, given, CLASSES)
    assert errors is not None
    problem = replace(plain, given=given).knowing(errors)
    true = batches(Client(1)).double()
    assert problem.explainer(torch.float64)(true, problem.labels).cosine().max() < 1e-6
    images = true.flip(3).requires_grad_()
    found = problem.explainer(torch.float64)(images, problem.labels).cosine()
    net, expected = problem.net.double(), []
    for number, image in enumerate(images):
        grads = torch.autograd.grad((net(image) * errors[number]).sum(), list(net.parameters()), create_graph=True)
        target = torch.cat([given[name][number].flatten() for name, _ in net.named_parameters()]).double()
        expected.append(1 - cosine_similarity(torch.cat([g.flatten() for g in grads]), target, dim=0, eps=1e-30))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-6)
    slopes = [torch.autograd.grad(values.sum(), images, retain_graph=True)[0] for values in (found, sum(expected))]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-2, atol=1e-3 * float(slopes[1].abs().max()))
    some = torch.tensor([2, 0])
    torch.testing.assert_close(problem[some].explainer(torch.float64)(images[some], problem.labels[some]).cosine(),
                               found[some])
    again = problem[some[:1]].again(3).explainer(torch.float64)(images[some[:1]].expand(3, -1, -1, -1, -1),
                                                                problem.labels[some[:1]].expand(3, -1)).cosine()
    torch.testing.assert_close(again, found[some[:1]].expand(3))


def sent(net: nn.Module, images: Tensor, labels: Tensor) -> Tensors:
    names = [name for name, _ in net.named_parameters()]
    grads = [torch.autograd.grad(cross_entropy(net(x[None]), y[None]), list(net.parameters()))
             for x, y in zip(images, labels, strict=True)]
    return {name: torch.stack(each) for name, each in zip(names, zip(*grads, strict=True), strict=True)}
