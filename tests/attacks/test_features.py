"""The last layer's inputs, as its gradients tell them."""

import pytest
import torch
from torch import Tensor, nn

from ppbench.attacks._features import Features, features_of
from ppbench.codec import Tensors
from ppbench.seeding import generator, seeded

SIZE, CLASSES, WIDTH = 8, 5, 6


def net_of(spread: float) -> nn.Sequential:
    """Return a network whose probabilities lie more or less far apart."""
    with seeded(1):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
        nn.init.normal_(net[3].weight, std=spread)  # type: ignore[arg-type]
        nn.init.zeros_(net[3].bias)  # type: ignore[arg-type]
    return net


def images(count: int, seed: int = 2) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=generator(seed))


def sent(net: nn.Module, labels: list[int], smoothing: float = 0.0) -> Tensors:
    loss = nn.functional.cross_entropy(net(images(len(labels))), torch.tensor(labels), label_smoothing=smoothing)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    return {name: grad[None] for (name, _), grad in zip(net.named_parameters(), grads, strict=True)}


def known(net: nn.Module, given: Tensors, labels: list[int], smoothing: float = 0.0) -> Features | None:
    return features_of(net, given, torch.tensor([labels]), CLASSES, images(50, seed=3), smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("labels", [[3], [0, 2, 4], [1, 1, 4]])
def test_features_are_told_by_the_last_layer(labels: list[int], smoothing: float) -> None:
    net = net_of(0.001)
    found = known(net, sent(net, labels, smoothing), labels, smoothing)
    assert found is not None
    true = net[:3](images(len(labels))).detach()
    if labels == [1, 1, 4]:
        true[:2] = true[:2].mean(0)
    torch.testing.assert_close(found.values[0], true, atol=0.02, rtol=0)
    assert known(net, {"3.weight": sent(net, labels)["3.weight"]}, labels) is None


def test_one_images_features_are_exact_whatever_the_network_predicts() -> None:
    net = net_of(2.0)
    found = known(net, sent(net, [3]), [3])
    assert found is not None
    torch.testing.assert_close(found.values[0], net[:3](images(1)).detach(), atol=1e-4, rtol=0)


def test_what_probabilities_leave_open_is_not_told() -> None:
    """With every class once, an untrained network's gradient tells the inputs up to what all of them share."""
    labels, net = list(range(CLASSES)), net_of(0.001)
    true = net[:3](images(CLASSES)).detach()
    found = known(net, sent(net, labels), labels)
    assert found is not None
    torch.testing.assert_close(found.values[0], true - true.mean(0), atol=0.03, rtol=0)
    assert found.apart(true[None]) < 1e-3
    assert found.apart(true[None] + 3) < 1e-3  # nobody can say
    assert found.apart(true.flip(0)[None]) > 0.1


def test_of_a_batch_on_a_network_that_tells_images_apart_nothing_is_clear() -> None:
    net = net_of(5.0)
    assert known(net, sent(net, [0, 2, 4]), [0, 2, 4]) is None


def test_noise_is_not_taken_for_features() -> None:
    net = net_of(0.001)
    given = sent(net, [0, 2])
    weight = given["3.weight"]
    noise = torch.randn(weight.shape, generator=generator(5))
    assert known(net, given | {"3.weight": weight + weight.std() * noise}, [0, 2]) is None


def test_distances_of_every_problem_are_its_own() -> None:
    values = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    found = Features(values, torch.ones(2, 1, 1))
    torch.testing.assert_close(found.apart(torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]]])), torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(found[torch.tensor([1])].apart(torch.zeros(1, 1, 2)), torch.ones(1))
