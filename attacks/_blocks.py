"""Transformer blocks (Vaswani et al. 2017, as in timm's ViT) of the attackers' networks."""

from typing import Any

from torch import nn


def transformer(width: int, depth: int) -> nn.Sequential:
    """Build `depth` blocks over tokens `[N, T, width]`, with heads of 32 values where the width divides by that.

    Loading timm takes longer than planning a run: only what builds a network waits for it.
    """
    from timm.models.vision_transformer import Block

    heads: Any = width // 32 if width % 32 == 0 else 1
    return nn.Sequential(*(Block(width, heads, mlp_ratio=2, qkv_bias=True) for _ in range(depth)))
