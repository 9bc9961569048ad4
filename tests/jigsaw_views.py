"""Views of scrambled photographs, and attacks that learn little."""

from dataclasses import replace

import pytest
import torch
from jigsaw_pieces import ETC, TURNED, UNCHANGED, Flags, crops
from release_views import view_of
from torch import Tensor

from ppbench.attacks.jigsaw import Jigsaw
from ppbench.data import Images
from ppbench.view import View

FEW = Jigsaw(steps=3, width=8, restarts=4)  # learns next to nothing
MEASURED = replace(FEW, steps=0)
PUBLIC = crops(24, 32)
PLAIN_BLOCKS: dict[str, object] = {"preset": "vit-cipher", "pixels": "none"}  # block scrambling that only moves blocks
SCRAMBLED: dict[str, tuple[Flags, dict[str, object]]] = {
    "moved": (UNCHANGED, PLAIN_BLOCKS), "etc": (ETC, {"preset": "etc"}),
    "turned": (TURNED, {"preset": "etc", "negative": "none", "colours": "none"}),
    "coloured": ((False, True, True), {"preset": "etc", "turn": False})}
ciphers = pytest.mark.parametrize("cipher", SCRAMBLED)


def images_of(pixels: Tensor) -> Images:
    return Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels)))


def scrambled_view(pixels: Tensor, cipher: str, block: int, scope: str, public: Images = PUBLIC, clients: int = 1,
                   ) -> View:
    """Photographs under block scrambling, public images granted; those have another size, which no prior minds."""
    params = {**SCRAMBLED[cipher][1], "block": block}
    return view_of(images_of(pixels), public, "block-scrambling", params, scope, clients=clients)


def shuffled_view(pixels: Tensor, patch: int, public: Images = PUBLIC) -> View:
    return view_of(images_of(pixels), public, "patch-shuffle", {"patch": patch}, "image")


def without_public(view: View) -> View:
    return view.only(frozenset({"images", "algorithm"}))


def aimed(view: View, rows: list[int]) -> View:
    """The same release, with these of its images as the targets."""
    return View(replace(view.sealed, n_targets=len(rows), target_rows=torch.tensor(rows), labels=None))
