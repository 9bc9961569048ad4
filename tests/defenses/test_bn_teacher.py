from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bn_networks import coloured, teacher_of
from safetensors.torch import save_file
from torch import nn

from ppbench.defenses import bn_synthesis
from ppbench.defenses._bn_teacher import conv_net, train
from ppbench.defenses.bn_synthesis import BnSynthesis
from ppbench.errors import UserError
from ppbench.seeding import generator, seeded, threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from more, and results are to the bit."""
    with threads(1):
        yield


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


def saved(net: nn.Module, path: Path, prefix: str = "", wrapped: bool = False) -> str:
    state = {prefix + name: value for name, value in net.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    return str(path)


@pytest.mark.parametrize(("name", "prefix", "wrapped"), [
    ("a.safetensors", "", False), ("a.pt", "", False), ("a.th", "module.", True), ("a.pt", "net.", True),
])
def test_a_given_teacher_is_not_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, prefix: str,
                                        wrapped: bool) -> None:
    with seeded(5):
        net = conv_net(4)
    path = saved(net, tmp_path / name, prefix, wrapped)
    monkeypatch.setattr(bn_synthesis, "train", None)
    private = coloured([0, 1, 2, 0])  # the teacher knows a class more
    defense = BnSynthesis(steps=2, teacher_weights=path, labels="teacher")
    defense.check(private.shape)
    release = defense.protect(private, None, generator(0))
    with torch.no_grad():
        expected = net.eval()(release.images * 2 - 1)
    torch.testing.assert_close(release.extras["logits"], expected[:, :3], atol=1e-5, rtol=1e-4)


def test_the_file_of_weights_is_declared() -> None:
    assert BnSynthesis.files == ("teacher_weights",)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    wide, text, listed = tmp_path / "wide.pt", tmp_path / "text.pt", tmp_path / "list.pt"
    saved(conv_net(4, width=8), wide)
    text.write_text("no weights")
    torch.save([1, 2], listed)
    for path, why in ((wide, "does not fit the teacher"), (text, "cannot be read"), (listed, "holds no tensors"),
                      (tmp_path / "none.pt", "cannot be read"), (tmp_path / "none.safetensors", "cannot be read")):
        with pytest.raises(UserError, match=why) as refused:
            BnSynthesis(teacher_weights=str(path)).check((3, 16, 16))
        assert "\n" not in str(refused.value)


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"weight": Evil(tmp_path / "was_here")}, path)
    with pytest.raises(UserError, match="cannot be read"):
        BnSynthesis(teacher_weights=str(path)).check((3, 16, 16))
    assert not (tmp_path / "was_here").exists()


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
