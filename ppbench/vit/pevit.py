"""PEViT: a vision transformer that does not know the order of its patches, from any plain timm ViT.

Source: Hao et al., "Human-imperceptible, machine-recognizable images", IJCAI 2023 (arXiv 2306.03679).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ppbench.codec import Tensors
from ppbench.errors import UserError
from ppbench.model import Model, make_network
from ppbench.vit.shape import POSITIONS, patch_embedding, vit_shape

STD = 0.02
NORM = "net.patch_embed.norm."


class ReferenceEncoding(nn.Module):
    """The paper's RPE: x + f(x - r), every patch's token held against one learned reference token.

    f is linear, ReLU, linear, sigmoid, all of the tokens' width; the linear layers start as timm's ViTs start theirs.

    Attributes:
        reference: r, `[1, 1, D]`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reference = nn.Parameter(trunc_normal_(torch.empty(1, 1, width), std=STD))
        self.encode = nn.Sequential(_linear(width), nn.ReLU(), _linear(width), nn.Sigmoid())

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens `[..., D]`."""
        encoding: Tensor = self.encode(tokens - self.reference)
        return tokens + encoding


def _linear(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    trunc_normal_(layer.weight, std=STD)
    nn.init.zeros_(layer.bias)
    return layer


def pevit(base: str, kwargs: Mapping[str, Any], positions: bool = False, rpe: bool = True) -> nn.Module:
    """Build a plain timm ViT without position embedding, with the reference encoding on its patches' tokens.

    Args:
        base: `timm:NAME`.
        kwargs: the keyword arguments of the plain ViT.
        positions: keep the position embedding (added after the reference encoding).
        rpe: use the reference encoding.

    Raises:
        UserError: timm refuses the arguments, or the network is no plain ViT.
    """
    net = make_network(base, kwargs if positions else {**kwargs, "pos_embed": "none"})
    embed = patch_embedding(net)
    if embed is None:
        raise UserError(f"{base!r} is no plain vision transformer of timm's: name one of these")
    if isinstance(net.pos_embed, nn.Parameter) and not positions:  # distilled DeiT has one whatever it is told
        nothing = torch.zeros_like(net.pos_embed.data)
        del net.pos_embed
        net.register_buffer("pos_embed", nothing, persistent=False)
    if rpe:  # timm's place for what acts on the patches' tokens alone, before class token and positions
        embed.norm = nn.Sequential(embed.norm, ReferenceEncoding(embed.proj.out_channels))
    return net


def without_order(model: Model, *, positions: bool, rpe: bool) -> Model:
    """Return a plain timm ViT as a PEViT; without the reference encoding it remains a network of timm's if it can.

    Given weights are taken over, but for the position embedding; the reference encoding is drawn from the global
    generator. Without weights only the architecture is returned.

    Args:
        model: a plain timm ViT (`vit_shape` knows it).
        positions: keep the position embedding.
        rpe: add the reference encoding.

    Raises:
        UserError: the model is no plain ViT.
    """
    if vit_shape(model) is None:
        raise UserError(f"{model.factory!r} is no plain vision transformer of timm's: name one of these")
    plain = model.kwargs if positions else {**model.kwargs, "pos_embed": "none"}
    with torch.device("meta"):
        left = positions or getattr(make_network(model.factory, plain), "pos_embed", None) is None
    if rpe or not left:
        kwargs = {"base": model.factory, "kwargs": model.kwargs, "positions": positions, "rpe": rpe}
        changed = Model("ppbench.vit.pevit:pevit", kwargs)
    else:
        changed = Model(model.factory, plain)
    if model.state is None:
        return changed
    return Model(changed.factory, changed.kwargs, from_plain(model, positions=positions, rpe=rpe))


def from_plain(model: Model, *, positions: bool, rpe: bool) -> Tensors:
    """Return the weights of `without_order(model)`, those of the plain ViT `model` taken over.

    Raises:
        UserError: the model is no plain ViT, or has no weights.
    """
    vit = vit_shape(model)
    if vit is None or model.state is None:
        raise UserError(f"{model.factory!r} is no plain vision transformer of timm with weights to start from")
    kept = {name: value.clone() for name, value in model.state.items() if positions or name != POSITIONS}
    if not rpe:
        return kept
    kept = {name.replace(NORM, NORM + "0."): value for name, value in kept.items()}
    drawn = ReferenceEncoding(vit.width).state_dict()
    return kept | {f"{NORM}1.{name}": value.detach().clone() for name, value in drawn.items()}
