import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.nets import cifar_resnet, convnet, small_resnet18
from ppbench.seeding import generator, seeded, threads

REAL = Path(os.environ.get("PPBENCH_DATA", Path(__file__).parents[1] / "../shared"))
WEIGHTS = REAL / "weights/cifar10_resnet"
RESNET = "ppbench.nets:cifar_resnet"


def with_random_statistics(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias):
                assert values is not None
                nn.init.uniform_(values, -0.5, 0.5)
            for values in (module.running_var, module.weight):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1.5)
    return net.eval()


def by_hand(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    """The paper's network from its parameters alone, in float64, with option A written by slices."""
    def normed(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (state[f"{name}.{part}"][:, None, None]
                                        for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None].double())
    x = x / torch.tensor([0.229, 0.224, 0.225])[:, None, None].double()
    x = normed(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normed(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            y = normed(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            quarter = x.shape[1] // 2
            if stride == 2:
                y[:, quarter:3 * quarter] += x[:, :, ::2, ::2]
                x = y.relu()
            else:
                x = (y + x).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("depth", [8, 20])
def test_the_resnet_is_the_papers(depth: int) -> None:
    with seeded(0):
        model = Model(RESNET, {"num_classes": 7, "depth": depth})
        net = with_random_statistics(model.build())
    images = torch.rand(2, 3, 16, 16, generator=generator(1))
    state = {name.removeprefix("net."): value.double() for name, value in net.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(net(images).double(), by_hand(state, images.double(), (depth - 2) // 6),
                                   atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 0.27e6), (32, 0.46e6), (56, 0.85e6)])
def test_the_resnet_has_the_papers_number_of_parameters(depth: int, parameters: float) -> None:
    assert sum(each.numel() for each in cifar_resnet(depth=depth).parameters()) == pytest.approx(parameters, rel=0.02)


def test_the_normalisation_is_no_weight() -> None:
    assert {"mean", "std"}.isdisjoint(cifar_resnet().state_dict())


def test_a_recipe_keeps_its_weights_and_fits_grey_images() -> None:
    model = for_images(RESNET, {"depth": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, (1, 16, 16), 4)
    with seeded(0):
        model = model.with_state(model.build())
    images = torch.rand(2, 1, 16, 16, generator=generator(0))
    with torch.no_grad():
        assert torch.equal(model.build().eval()(images), model.build().eval()(images))
        assert model.build()(images).shape == (2, 4)


@pytest.mark.parametrize("wrong", [{"depth": 21}, {"depth": 2}, {"std": [0.2, 0.0, 0.2]}])
def test_a_resnet_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Model(RESNET, wrong).build()


def test_the_convnet_takes_images_of_any_size() -> None:
    with torch.no_grad():
        for side in (16, 28, 33):
            assert convnet(5, in_chans=1)(torch.zeros(2, 1, side, side)).shape == (2, 5)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "file", "known", "count"), [(20, "resnet20-12fca82f.th", 0.9173, 2_000),
                                                               (56, "resnet56-4bfd9763.th", 0.9339, 1_000)])
def test_the_published_weights_give_the_known_accuracy(depth: int, file: str, known: float, count: int) -> None:
    """As near as the number of images lets one say (three standard errors); of all 10,000 it was so to the image."""
    if not WEIGHTS.is_dir():
        pytest.skip("no PPBENCH_DATA with weights/cifar10_resnet")
    images, labels = (part[:count] for part in cifar_test())
    state = torch.load(WEIGHTS / file, "cpu", weights_only=True)["state_dict"]
    model = Model(RESNET, {"depth": depth}, {name.replace("module.", "net.", 1): each for name, each in state.items()})
    net = model.build().eval().to(memory_format=torch.channels_last)
    with threads(1), torch.no_grad():
        right = sum(int((net(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).sum())
                    for x, y in zip(images.split(50), labels.split(50), strict=True))
    assert right / count == pytest.approx(known, abs=3 * (known * (1 - known) / count) ** 0.5)


def cifar_test() -> tuple[Tensor, Tensor]:
    """Read CIFAR-10's test images from their atlas, `[10000, 3, 32, 32]` in [0, 1], and their labels."""
    folder = REAL / "data/cifar10"
    atlas = torch.from_numpy(np.array(Image.open(folder / "cifar10_test.webp").convert("RGB")))
    rows = atlas.shape[0] // 32
    images = atlas.reshape(rows, 32, 100, 32, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    labels = torch.from_numpy(np.load(folder / "cifar10_labels.npz")["test"]).long()
    return images.float() / 255, labels


def test_resnet18_of_small_images_keeps_the_side_where_torchvision_halves_it_twice() -> None:
    net = small_resnet18(7, in_chans=1).eval()
    shapes: list[tuple[int, ...]] = []
    for name in ("layer1", "layer4"):
        net.get_submodule(name).register_forward_hook(lambda _, __, found: shapes.append(tuple(found.shape)))
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert shapes == [(2, 64, 32, 32), (2, 512, 4, 4)]
