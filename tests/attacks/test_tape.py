"""Tapes: what twins tell of a network's gradients, against torch's own gradients."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppbench.attacks._tape import Tape, Unsupported
from ppbench.codec import Tensors
from ppbench.nets import cifar_resnet, convnet, deep_convnet, lenet
from ppbench.seeding import generator, seeded
from ppbench.updates import prepare

CLASSES, SIZE = 5, 2


def vit() -> nn.Module:
    net: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2,
                                       num_heads=2, num_classes=CLASSES)
    nn.init.normal_(net.head.weight)  # type: ignore[arg-type, union-attr] (timm's starts at zero)
    return net


class Adding(nn.Module):
    """What writes over what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        found = self.second(self.first(images))
        found += images
        logits: Tensor = self.last(self.relu(found).mean((2, 3)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: convnet(CLASSES, width=4, grid=4),
    "lenet": lambda: lenet(CLASSES),
    "deep convnet": lambda: deep_convnet(CLASSES, width=4),
    "resnet": lambda: cifar_resnet(CLASSES, depth=8),
    "vit": vit,
    "timm resnet": lambda: timm.create_model("test_resnet", num_classes=CLASSES),
    "in place": Adding,
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.Flatten(),
                                        nn.LazyLinear(CLASSES)),
}


def built(name: str, bn_train: bool = False) -> nn.Module:
    with seeded(0):
        net = NETWORKS[name]()
        for _ in range(3):  # running statistics that are not those of the start
            net(torch.rand(8, 3, 16, 16))
    prepare(net, bn_train)
    return net


def given_to(net: nn.Module, problems: int, dtype: torch.dtype = torch.float64) -> Tensors:
    rng = generator(1)
    return {name: torch.randn(problems, *value.shape, generator=rng).to(dtype)
            for name, value in net.named_parameters()}


def told(tape: Tape, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = tape(images.flatten(0, 1), len(images))
    return tape.sums(cross_entropy(logits, labels.flatten(), reduction="sum") / SIZE)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("name", "bn_train"), [*((name, False) for name in NETWORKS), ("resnet", True),
                                                ("in place", True), ("timm resnet", True)])
def test_a_tape_tells_what_torch_does(name: str, bn_train: bool, shared: bool) -> None:
    net = built(name, bn_train).double()
    problems = 3
    given = given_to(net, 1 if shared else problems)
    images = torch.rand(problems, SIZE, 3, 16, 16, generator=generator(2), dtype=torch.float64).requires_grad_()
    labels = torch.randint(CLASSES, (problems, SIZE), generator=generator(3))
    products, squares = [], []
    for number in range(problems):
        loss = cross_entropy(net(images[number]), labels[number])
        grads = dict(zip(given, torch.autograd.grad(loss, list(net.parameters()), create_graph=True), strict=True))
        products.append(sum((grads[key] * value[0 if shared else number]).sum() for key, value in given.items()))
        squares.append(sum(grad.square().sum() for grad in grads.values()))
    true = torch.stack(products), torch.stack(squares)  # type: ignore[arg-type]
    found = told(Tape(net, given, torch.float64), images, labels)
    torch.testing.assert_close(found, true)
    slopes = [torch.autograd.grad(a.sum() + b.log().sum(), images)[0] for a, b in (found, true)]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_bfloat16_is_near() -> None:
    net = built("deep convnet")
    given, images = given_to(net, 1, torch.float32), torch.rand(2, SIZE, 3, 16, 16, generator=generator(2))
    labels = torch.tensor([[0, 1], [2, 3]])
    exact, near = (told(Tape(net, given, dtype), images.requires_grad_(), labels)
                   for dtype in (torch.float32, torch.bfloat16))
    assert near[1].dtype == torch.float32
    torch.testing.assert_close(near[1], exact[1], rtol=0.1, atol=0)


def test_the_network_itself_is_left_alone() -> None:
    net = built("in place")
    Tape(net, given_to(net, 1, torch.float32), torch.bfloat16)
    assert isinstance(net.get_submodule("first"), nn.Conv2d)
    assert net.get_submodule("relu").inplace
    assert all(value.requires_grad and value.dtype == torch.float32 for value in net.parameters())


class Scaled(nn.Module):
    """A layer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.ones(3)), nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(images.mean((2, 3)) * self.scale)
        return logits


@pytest.mark.parametrize(("net", "what"), [
    (Scaled(), "scale, of a Scaled, has no twin"),
    (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten(), nn.Linear(588, CLASSES)), "Conv2d, has no twin"),
])
def test_what_has_no_twin_is_said(net: nn.Module, what: str) -> None:
    with pytest.raises(Unsupported, match=what):
        Tape(net, given_to(net, 1, torch.float32))


def test_parameters_that_layers_share_are_refused() -> None:
    shared, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = shared.weight
    for layers in ((shared, shared), (shared, other)):
        net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), *layers, nn.Linear(4, CLASSES))
        with pytest.raises(Unsupported, match="share a parameter"):
            Tape(net, given_to(net, 1, torch.float32))


class Again(nn.Sequential):
    """What passes one of its layers twice."""

    def forward(self, images: Tensor) -> Tensor:
        found = self[1](images.flatten(1))
        logits: Tensor = self[2](self[1](found))
        return logits


def test_a_layer_that_is_passed_twice_is_refused() -> None:
    net = Again(nn.Flatten(), nn.Linear(768, 768), nn.Linear(768, CLASSES))
    tape = Tape(net, given_to(net, 1, torch.float32))
    with pytest.raises(Unsupported, match="passed more than once"):
        told(tape, torch.rand(1, SIZE, 3, 16, 16).requires_grad_(), torch.zeros(1, SIZE, dtype=torch.int64))


def test_a_gradient_of_nothing_in_the_network_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))
    with pytest.raises(Unsupported, match=r"9\.weight is no parameter"):
        Tape(net, given_to(net, 1, torch.float32) | {"9.weight": torch.zeros(1, 2)})


def test_a_parameter_that_was_not_sent_does_not_count() -> None:
    net = built("convnet").double()
    given = given_to(net, 1)
    whole = told(Tape(net, given, torch.float64), torch.ones(1, SIZE, 3, 16, 16).double().requires_grad_(),
                 torch.zeros(1, SIZE, dtype=torch.int64))
    last = {name: value for name, value in given.items() if name.startswith("1.")}
    part = told(Tape(net, last, torch.float64), torch.ones(1, SIZE, 3, 16, 16).double().requires_grad_(),
                torch.zeros(1, SIZE, dtype=torch.int64))
    assert 0 < part[1].item() < whole[1].item()
