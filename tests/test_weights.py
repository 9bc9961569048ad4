"""Given weights: read without running anything, and taken over where they belong."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ppbench.errors import UserError
from ppbench.model import make_network
from ppbench.weights import published, read_weights, take_over

VIT = {"patch_size": 4, "img_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 5}


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code was run')",))


def test_files_are_read_with_and_without_wrapping(tmp_path: Path) -> None:
    values = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    save_file(values, tmp_path / "x.safetensors")
    torch.save(values, tmp_path / "x.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in values.items()}, "acc": 1},
               tmp_path / "wrapped.th")
    for name in ("x.safetensors", "x.pt", "wrapped.th"):
        found = read_weights(tmp_path / name)
        assert found.keys() == values.keys()
        assert torch.equal(found["a.weight"], values["a.weight"])


def test_what_is_no_file_of_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    for name in ("evil.pt", "list.pt", "cut.safetensors", "absent.pt"):
        with pytest.raises(UserError, match="state_dict"):
            read_weights(tmp_path / name)


def test_a_network_takes_over_its_own_weights() -> None:
    one, other = make_network("timm:vit_tiny_patch16_224", VIT), make_network("timm:vit_tiny_patch16_224", VIT)
    take_over(other, {f"net.{name}": value for name, value in one.state_dict().items()}, "vit")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(one.eval()(images), other.eval()(images))


def test_another_number_of_classes_keeps_a_fresh_head_and_another_size_is_resized() -> None:
    one = make_network("timm:vit_tiny_patch16_224", VIT)
    other = make_network("timm:vit_tiny_patch16_224", VIT | {"num_classes": 7, "img_size": 32})
    head = other.state_dict()["head.weight"].clone()
    take_over(other, one.state_dict(), "vit")
    assert torch.equal(other.state_dict()["head.weight"], head)
    assert torch.equal(other.state_dict()["blocks.0.mlp.fc1.weight"], one.state_dict()["blocks.0.mlp.fc1.weight"])
    assert other.state_dict()["pos_embed"].shape[1] == 65


def test_foreign_weights_are_refused() -> None:
    one = make_network("timm:vit_tiny_patch16_224", VIT)
    with pytest.raises(UserError, match=r"not those of the victim 'vit' .* choose the model"):
        take_over(one, make_network("timm:vit_tiny_patch16_224", VIT | {"embed_dim": 48}).state_dict(), "vit")
    with pytest.raises(UserError, match="is unknown to it"):
        take_over(one, {**one.state_dict(), "more": torch.zeros(1)}, "vit")
    with pytest.raises(UserError, match="is missing"):
        take_over(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), {"1.weight": torch.zeros(2, 2)}, "two")


def test_who_publishes_nothing_is_told() -> None:
    with pytest.raises(UserError, match="only timm and torchvision"):
        published("ppbench.nets:convnet", {})
