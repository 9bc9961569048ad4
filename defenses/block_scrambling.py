"""Block scrambling: one cipher of a few steps on square blocks, with the published combinations as presets.

Sources of the presets:
    vit-cipher: Nagamori & Kiya 2023, "Combined use of federated learning and image encryption for privacy-preserving
        image classification with vision transformer" (arXiv 2301.09255).
    etc: Kurihara, Kikuchi, Imaizumi, Shiota & Kiya 2015, "An encryption-then-compression system for JPEG/Motion JPEG
        standard", and Chuman, Sirichotedumrong & Kiya 2019, "Encryption-then-compression systems using grayscale-based
        image encryption for JPEG images"; the colours of a block are turned and negated together.
    le: Tanaka 2018, "Learnable image encryption".
    ele: Madono, Tanaka, Onishi & Ogawa 2020, "Block-wise scrambled image recognition using adaptation network".
    pe: Sirichotedumrong, Kinoshita & Kiya 2019, "Pixel-based image encryption without key management for
        privacy-preserving deep neural networks".
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import PerImageDefense, Pieces
from ppbench.defenses._block_steps import (
    MOVE,
    TURN,
    Layout,
    Step,
    colour_step,
    join_nibbles,
    negative_step,
    pixel_step,
    split_nibbles,
)

Preset = Literal["vit-cipher", "etc", "le", "ele", "pe"]
Colours = Literal["none", "block", "pixel"]
Negative = Literal["none", "block", "shared", "own"]
Pixels = Literal["none", "shared", "own"]


@dataclass(frozen=True)
class Recipe:
    """Which steps a cipher takes; the fields are those of `BlockScrambling`."""

    move: bool = False
    turn: bool = False
    colours: Colours = "none"
    negative: Negative = "none"
    pixels: Pixels = "none"
    nibbles: bool = False

    @property
    def has_blocks(self) -> bool:
        """Say whether the cipher cuts blocks at all, or treats every pixel on its own."""
        return (self.move or self.turn or self.colours == "block" or self.negative in ("block", "shared")
                or self.pixels != "none")

    def steps(self) -> tuple[Step, ...]:
        """Return the steps in the order in which they are taken."""
        found: list[Step] = []
        if self.move:
            found.append(MOVE)
        if self.turn:
            found.append(TURN)
        if self.colours != "none":
            found.append(colour_step(self.colours))
        if self.negative != "none":
            found.append(negative_step(self.negative))
        if self.pixels != "none":
            found.append(pixel_step(self.pixels))
        return tuple(found)


PRESETS: Mapping[str, Recipe] = {
    "vit-cipher": Recipe(move=True, pixels="shared"),
    "etc": Recipe(move=True, turn=True, negative="block", colours="block"),
    "le": Recipe(negative="shared", pixels="shared", nibbles=True),
    "ele": Recipe(move=True, negative="own", pixels="own", nibbles=True),
    "pe": Recipe(negative="own", colours="pixel"),
}


@dataclass(frozen=True)
class BlockScrambling(PerImageDefense):
    """Scramble square blocks under a key: the ViT cipher, EtC, LE, ELE or PE, or any combination of their steps.

    A preset names the steps; each parameter after `block` replaces one of them (None = as the preset says):

    | preset | block places | turn | colours | negative | pixels | nibbles |
    |---|---|---|---|---|---|---|
    | `vit-cipher` | permuted | | | | shared | |
    | `etc` | permuted | 8 states | block | block | | |
    | `le` | | | | shared | shared | yes |
    | `ele` | permuted | | | own | own | yes |
    | `pe` | | | pixel | own | | |

    Steps that are the same in every block (`shared`) can be absorbed by the victim's patch embedding, and a
    permutation of whole blocks by its position embedding: that covers all of `vit-cipher`; `le` also repeats its steps
    in every block, but works on halves of values. What is drawn for each block or pixel (`etc`, `ele`, `pe`) cannot.

    Images of 8 bit are encrypted to images of 8 bit, one to one, and decrypted exactly; with nibbles, other values are
    rounded to 8 bit first. Permutations alone are exact for any values.

    Attributes:
        preset: the published combination to start from.
        block: side of a block in pixels; the papers: the ViT's patch (16 at 224) for `vit-cipher`, 16 for `etc`, 4 for
            `le` and `ele`; without meaning for `pe`, which treats every pixel on its own.
        move: permute the blocks of an image.
        turn: turn and mirror every block its own way (8 states).
        colours: permute the colour channels of every `block` or `pixel` its own way (grey images: nothing to permute).
        negative: turn to 1 - v, each with probability 1/2: whole blocks (`block`), values at the same places in all
            blocks (`shared`), or any values (`own`). Published LE ties its choice of values to its shuffle.
        pixels: shuffle the values inside a block, channels mixed in: all blocks alike (`shared`) or each its `own` way.
        nibbles: let `negative` and `pixels` act on the high and low 4 bits of every value instead of the value.
    """

    key_scopes = ("global", "client", "image")
    preset: Preset = "vit-cipher"
    block: int = 4
    move: bool | None = None
    turn: bool | None = None
    colours: Colours | None = None
    negative: Negative | None = None
    pixels: Pixels | None = None
    nibbles: bool | None = None

    def __post_init__(self) -> None:
        choices = {"preset": Preset, "colours": Colours, "negative": Negative, "pixels": Pixels}
        for name, kind in choices.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed and not (value is None and name != "preset"):
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if not self.recipe.steps():
            raise ValueError("no step is left that encrypts: choose move, turn, colours, negative or pixels")

    @property
    def recipe(self) -> Recipe:
        """Return the steps of the preset, with those that the parameters replace."""
        given = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return replace(PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None})

    def check(self, shape: Shape) -> None:
        """Refuse blocks that do not tile the image."""
        check_divides("block", self._side, shape)

    def keys(self, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        """Draw one tensor a step that is taken, the leading axis counting the keys.

        `blocks` `[count, blocks]`, `turns` `[count, blocks]`, `colours` `[count, blocks, C, 1 or size, 1 or size]`,
        `negative` (bool) `[count, 1 or blocks, channels or 1, size or 1, size or 1]`, `pixels` `[count, values]` or
        `[count, blocks, values]`.
        """
        c, h, w = shape
        layout = Layout((h // self._side) * (w // self._side), c, 2 if self.recipe.nibbles else 1, self._side)
        return {step.key: step.draw(count, layout, rng) for step in self.recipe.steps()}

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Take every step in turn."""
        blocks = self._cut(images)
        for step in self.recipe.steps():
            blocks = step.apply(blocks, key[step.key])
        return self._join(blocks, (images.shape[1], images.shape[2], images.shape[3]))

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Undo every step, the last one first."""
        blocks = self._cut(images)
        for step in reversed(self.recipe.steps()):
            blocks = step.undo(blocks, key[step.key])
        return self._join(blocks, shape)

    def pieces(self, shape: Shape) -> Pieces | None:
        """Describe the cipher by what it may do to a block; None = every pixel is treated on its own (`pe`).

        What changes single values counts as a shuffle of pixels, of which it leaves as little.
        """
        recipe = self.recipe
        if not recipe.has_blocks:
            return None
        own = "own" in (recipe.pixels, recipe.negative) or recipe.colours == "pixel"
        nibbles = recipe.nibbles and (recipe.pixels, recipe.negative) != ("none", "none")
        shared = "shared" in (recipe.pixels, recipe.negative) or nibbles
        return Pieces(self.block, recipe.move, "own" if own else "shared" if shared else "kept", turned=recipe.turn,
                      negated=recipe.negative != "none", recoloured=recipe.colours == "block" and shape[0] > 1,
                      nibbles=nibbles)

    @property
    def _side(self) -> int:
        return self.block if self.recipe.has_blocks else 1

    def _cut(self, images: Tensor) -> Tensor:
        blocks = cut(images, self._side)
        return split_nibbles(blocks) if self.recipe.nibbles else blocks

    def _join(self, blocks: Tensor, shape: Shape) -> Tensor:
        return join(join_nibbles(blocks) if self.recipe.nibbles else blocks, shape)
