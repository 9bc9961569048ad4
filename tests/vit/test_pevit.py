from typing import Any

import pytest
import torch
from torch import Tensor
from vit_helpers import SMALL, images8, logits, vit

from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.data import Shape
from ppbench.errors import UserError
from ppbench.model import Model, for_images
from ppbench.seeding import generator, seeded
from ppbench.vit.pevit import ReferenceEncoding, from_plain, pevit, without_order
from ppbench.vit.shape import POSITIONS

POOLS = pytest.mark.parametrize("pool", [{}, {"class_token": False, "global_pool": "avg"},
                                         {"reg_tokens": 2, "no_embed_class": True}, {"global_pool": "map"}],
                                ids=["class token", "average", "registers", "attention"])
SIZES = pytest.mark.parametrize(("shape", "patch"), [((3, 32, 32), 4), ((3, 224, 224), 16)], ids=["32/4", "224/16"])


def shuffled(images: Tensor, patch: int, seed: int = 1) -> Tensor:
    _, c, h, w = images.shape
    order = permutations(len(images), (h // patch) * (w // patch), generator(seed))
    return join(permute_rows(cut(images, patch), order), (c, h, w))


def blotchy(shape: Shape, patch: int) -> Tensor:
    """Noise over patches that are brighter or darker as a whole."""
    coarse = images8(3, (shape[0], shape[1] // patch, shape[2] // patch), seed=5)
    return (coarse.repeat_interleave(patch, 2).repeat_interleave(patch, 3) + images8(3, shape)) / 2


def built(shape: Shape, patch: int, rpe: bool, positions: bool = False, **more: Any) -> Model:
    """A PEViT of which every weight matters."""
    plain = Model(*_recipe(vit(shape, patch_size=patch, depth=1, **more)))
    model = without_order(plain, positions=positions, rpe=rpe)
    with seeded(0):
        net = model.build()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.with_state(net)


def _recipe(model: Model) -> tuple[str, dict[str, Any]]:
    return model.factory, model.kwargs


@POOLS
@SIZES
@pytest.mark.parametrize("rpe", [True, False])
@torch.no_grad()
def test_the_order_of_the_patches_does_not_show(shape: Shape, patch: int, rpe: bool, pool: dict[str, Any]) -> None:
    model, images = built(shape, patch, rpe, **pool), blotchy(shape, patch)
    moved = shuffled(images, patch)
    assert not torch.equal(images, moved)
    net: Any = model.build().eval()
    torch.testing.assert_close(net(moved), net(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(model, moved), logits(model, images), atol=1e-10, rtol=0)
    assert (net(images)[0] - net(images)[1]).abs().max() > 1e-3  # it does see the images
    features = [net.net.forward_features(x * 2 - 1) for x in (moved, images)]
    if net.net.num_prefix_tokens:
        torch.testing.assert_close(features[0][:, 0], features[1][:, 0], atol=1e-5, rtol=0)
    assert (features[0] - features[1]).abs().max() > 1e-2  # the patches' tokens move with the patches


@POOLS
@SIZES
@pytest.mark.parametrize("rpe", [True, False])
def test_with_positions_it_does_show(shape: Shape, patch: int, rpe: bool, pool: dict[str, Any]) -> None:
    model, images = built(shape, patch, rpe, positions=True, **pool), blotchy(shape, patch)
    assert (logits(model, shuffled(images, patch)) - logits(model, images)).abs().max() > 1e-4


def test_the_reference_encoding_by_hand() -> None:
    rpe = ReferenceEncoding(2)
    rpe.load_state_dict({
        "reference": torch.tensor([[[1.0, -1.0]]]),
        "encode.0.weight": torch.tensor([[2.0, 0], [0, 1]]), "encode.0.bias": torch.tensor([0.5, 0]),
        "encode.2.weight": torch.tensor([[1.0, 1], [0, -1]]), "encode.2.bias": torch.tensor([0.0, 3])})
    # x - r = (2, 4); first layer (4.5, 4); second (8.5, -1); x = (3, 3)
    expected = torch.tensor([3, 3]) + torch.tensor([8.5, -1]).sigmoid()
    torch.testing.assert_close(rpe(torch.tensor([[[3.0, 3.0]]])), expected.reshape(1, 1, 2))
    low = torch.tensor([[[0.0, -3.0]]])  # x - r = (-1, -2); the first layer is cut to 0
    torch.testing.assert_close(rpe(low), low + torch.tensor([0.0, 3]).sigmoid())


def test_the_reference_starts_as_in_the_paper() -> None:
    with seeded(0):
        rpe = ReferenceEncoding(4096)
    assert rpe.reference.shape == (1, 1, 4096)
    assert abs(float(rpe.reference.detach().std()) - 0.02) < 2e-3
    assert [tuple(p.shape) for p in ReferenceEncoding(8).parameters()] == [(1, 1, 8), (8, 8), (8,), (8, 8), (8,)]


@torch.no_grad()
def test_only_the_patches_are_encoded() -> None:
    net: Any = pevit("timm:vit_tiny_patch16_224", {**SMALL, "img_size": 8, "reg_tokens": 1, "num_classes": 5})
    plain: Any = pevit("timm:vit_tiny_patch16_224", {**SMALL, "img_size": 8, "reg_tokens": 1, "num_classes": 5},
                       rpe=False)
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "patch_embed.norm" not in name})
    images = torch.rand(2, 3, 8, 8)
    one, other = (x._pos_embed(x.patch_embed(images)) for x in (net, plain))
    assert torch.equal(one[:, :2], other[:, :2])
    encoding = net.patch_embed.norm[1]
    torch.testing.assert_close(one[:, 2:], encoding(other[:, 2:]))


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("more", [{}, {"embed_norm_layer": "layernorm"}], ids=["plain", "normed"])
@pytest.mark.parametrize("rpe", [True, False])
def test_given_weights_are_taken_over(positions: bool, rpe: bool, more: dict[str, Any]) -> None:
    plain = vit(**more)
    model = without_order(plain, positions=positions, rpe=rpe)
    assert plain.state is not None
    assert model.state is not None
    net = model.build()  # the names and shapes fit
    found = {name.replace("patch_embed.norm.0.", "patch_embed.norm."): value for name, value in net.state_dict().items()
             if "patch_embed.norm.1." not in name}
    wanted = {name: value for name, value in plain.state.items() if positions or name != POSITIONS}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    fresh = [name for name in net.state_dict() if "patch_embed.norm.1." in name]
    assert len(fresh) == (5 if rpe else 0)


def test_all_positions_kept_and_no_encoding_is_the_plain_vit() -> None:
    plain = vit()
    same = without_order(plain, positions=True, rpe=False)
    assert same.factory == plain.factory
    assert same.kwargs == plain.kwargs
    assert torch.equal(logits(same, images8(2)), logits(plain, images8(2)))


def test_taken_over_weights_give_the_plain_vits_logits_where_its_positions_are_zero() -> None:
    plain = vit()
    assert plain.state is not None
    plain.state[POSITIONS].zero_()
    model = without_order(plain, positions=False, rpe=False)
    torch.testing.assert_close(logits(model, images8(3)), logits(plain, images8(3)), atol=1e-12, rtol=0)


def test_fresh_parts_are_drawn_from_the_global_generator() -> None:
    drawn = []
    for seed in (0, 0, 1):
        with seeded(seed):
            state = from_plain(vit(), positions=False, rpe=True)
        drawn.append(state["net.patch_embed.norm.1.reference"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("rpe", [True, False])
def test_without_weights_only_the_architecture_changes(rpe: bool) -> None:
    model = without_order(Model(*_recipe(vit())), positions=False, rpe=rpe)
    assert model.state is None
    assert not any("pos_embed" in name for name in model.build().state_dict())


def test_weights_keep_their_names_between_positions_and_none() -> None:
    names = [set(pevit("timm:vit_tiny_patch16_224", SMALL, positions).state_dict()) for positions in (True, False)]
    assert names[0] - names[1] == {"pos_embed"}


@pytest.mark.parametrize("rpe", [True, False])
def test_a_distilled_vit_forgets_the_order_as_well(rpe: bool) -> None:
    with seeded(0):
        model = without_order(vit(name="deit_tiny_distilled_patch16_224"), positions=False, rpe=rpe)
    images = blotchy((3, 16, 16), 4)
    torch.testing.assert_close(logits(model, shuffled(images, 4)), logits(model, images), atol=1e-10, rtol=0)
    assert not any("pos_embed" in name for name in model.build().state_dict())


@pytest.mark.parametrize("rpe", [True, False])
def test_other_networks_are_refused(rpe: bool) -> None:
    with pytest.raises(UserError, match="no plain vision transformer"):
        without_order(for_images("timm:resnet18", {}, (3, 32, 32), 5), positions=False, rpe=rpe)


def test_there_is_nothing_to_take_over_from_other_networks() -> None:
    for model in (Model("timm:resnet18", {}), Model(*_recipe(vit()))):
        with pytest.raises(UserError, match="no plain vision transformer"):
            from_plain(model, positions=False, rpe=True)
