"""Pictures of reconstructions: one row a target, columns private | released | each attack."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, GAP, HEADER, MARGIN = 96, 6, 54, 10
MOST_ROWS = 8
_INK, _PALE, _PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Column:
    """An attack's column: its name, threat model, row of results, and images `[n, C, H, W]` matched to targets."""

    attack: str
    threat: str
    row: dict[str, Any]
    images: Tensor


def draw_grid(title: str, private: Tensor, released: Tensor, has_partner: bool, columns: Sequence[Column]) -> bytes:
    """Return a PNG of the first targets, enlarged without blur.

    Args:
        title: a line above.
        private: `[n, C, H, W]`.
        released: `[n, c, h, w]`; may be smaller.
        has_partner: released image i comes from target i.
        columns: the attacks.
    """
    rows = min(MOST_ROWS, len(private))
    heads = [("private", "", ""), ("released", "" if has_partner else "(no partner)", "")]
    heads += [(column.attack, column.threat, _caption(column.row)) for column in columns]
    stacks = [private, released, *(column.images for column in columns)]
    width = 2 * MARGIN + len(stacks) * (TILE + GAP) - GAP
    height = 2 * MARGIN + 22 + HEADER + rows * (TILE + GAP) - GAP
    canvas = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), title, fill=_INK, font=ImageFont.load_default(14))
    small = ImageFont.load_default(11)
    for i, (head, images) in enumerate(zip(heads, stacks, strict=True)):
        left = MARGIN + i * (TILE + GAP)
        for j, (line, ink) in enumerate(zip(head, (_INK, _PALE, _INK), strict=True)):
            pen.text((left, MARGIN + 22 + 15 * j), _fitting(line, small), fill=ink, font=small)
        for j in range(rows):
            canvas.paste(tile(images[j]), (left, MARGIN + 22 + HEADER + j * (TILE + GAP)))
    content = io.BytesIO()
    canvas.save(content, "PNG", optimize=True)
    return content.getvalue()


def tile(image: Tensor) -> Image.Image:
    """Turn one image `[C, H, W]` into a square tile, pixels enlarged as squares."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    enlarged = max(picture.size) <= TILE
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS)


def _caption(row: dict[str, Any]) -> str:
    ssim = row.get("ssim")
    return "" if ssim is None else f"SSIM {ssim:.2f}"


def _fitting(text: str, font: Any) -> str:
    while text and font.getlength(text) > TILE + GAP - 2:
        text = text.rstrip("…")[:-1] + "…" if len(text) > 2 else ""
    return text
