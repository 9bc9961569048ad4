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
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ppbench.blocks import check_divides, cut, join
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Keys, PerImageDefense, Pieces
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
from ppbench.errors import UserError
from ppbench.model import Model
from ppbench.vit.absorb import PatchMap, encrypted, patch_map
from ppbench.vit.image_map import image_map
from ppbench.vit.shape import VitShape, vit_shape

Preset = Literal["vit-cipher", "etc", "le", "ele", "pe"]
Colours = Literal["none", "block", "pixel"]
Negative = Literal["none", "block", "shared", "own"]
Pixels = Literal["none", "shared", "own"]
Absorb = Literal["none", "weights", "layers"]


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

    @property
    def halves(self) -> bool:
        """Say whether values are taken apart, so that the halves of an encrypted value may be of two plain ones."""
        return self.nibbles and (self.pixels, self.negative) != ("none", "none")

    @property
    def alike(self) -> bool:
        """Say whether every block is treated like the others, wherever it goes, and whole values move."""
        return not (self.turn or self.halves or self.colours != "none" or self.negative in ("block", "own")
                    or self.pixels == "own")

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

    | preset | block places | turn | colours | negative | pixels | nibbles | one key is absorbed by a ViT's |
    |---|---|---|---|---|---|---|---|
    | `vit-cipher` | permuted | | | | shared | | weights |
    | `etc` | permuted | 8 states | block | block | | | layers: positions |
    | `le` | | | | shared | shared | yes | layers: halves |
    | `ele` | permuted | | | own | own | yes | layers: positions, halves |
    | `pe` | | | pixel | own | | | layers: positions |

    The last column is the key-adapted ViT (Nagamori & Kiya 2023), which computes on encrypted images what the plain one
    computes on plain images. Steps that are the same in every block (`shared`) are absorbed by its patch projection,
    and a permutation of whole blocks by its position embedding: its architecture stays (weights). What is drawn for
    each block or pixel needs a projection for every position, and what acts on nibbles one for the halves of values
    (layers). Either way no encrypted patch of the ViT may mix values of several plain ones: its patches are the
    cipher's blocks (or hold whole blocks that stay in place, or divide blocks whose pixels are turned at most). And
    the release must have one key: scope `global`, or `client` with a single client. Keys of one image each, or of
    several clients, cannot be absorbed by one model.

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
        absorb: how the victim is adapted to the key. `none`: not at all. `weights`: the key is absorbed by the weights
            of a ViT whose architecture can stay, and any other victim, or under several keys, is left as it is.
            `layers`: also with the new layers that the last column names; an error where that does not help either.
            Training follows the plain ViT's under `weights`; new layers have more weights to train than the plain one.
    """

    key_scopes = ("global", "client", "image")
    victim_params: ClassVar[frozenset[str]] = frozenset({"absorb"})
    preset: Preset = "vit-cipher"
    block: int = 4
    move: bool | None = None
    turn: bool | None = None
    colours: Colours | None = None
    negative: Negative | None = None
    pixels: Pixels | None = None
    nibbles: bool | None = None
    absorb: Absorb = "weights"

    def __post_init__(self) -> None:
        choices = {"preset": Preset, "absorb": Absorb, "colours": Colours, "negative": Negative, "pixels": Pixels}
        for name, kind in choices.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed and not (value is None and name not in ("preset", "absorb")):
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
        return self._join(self._scramble(self._split(images), key))

    def decrypt(self, images: Tensor, key: Tensors, shape: Shape) -> Tensor:
        """Undo every step, the last one first."""
        parts = self._split(images)
        blocks = cut(parts, self._side)
        for step in reversed(self.recipe.steps()):
            blocks = step.undo(blocks, key[step.key])
        return self._join(join(blocks, (parts.shape[1], parts.shape[2], parts.shape[3])))

    def adapt(self, model: Model, keys: Keys | None) -> Model:
        """Return the ViT that computes on encrypted images what `model` computes on plain ones, as `absorb` allows.

        Raises:
            UserError: the ViT's patches mix the cipher's blocks, or (`layers`) the key cannot be absorbed.
        """
        vit = None if self.absorb == "none" else vit_shape(model)
        count = 0 if keys is None else len(next(iter(keys.values.values())))
        if vit is None or keys is None or count != 1:
            if self.absorb == "layers":
                raise UserError(f"block-scrambling: absorb='layers' cannot serve {self._obstacle(model, vit, count)}")
            return model
        found = self._patch_map(keys, vit)
        if found is None:
            if self.absorb == "layers" or self.recipe.alike:
                raise UserError(self._mismatch(vit))
            return model
        if self.absorb == "weights" and (self.recipe.halves or not found.alike):
            return model
        return encrypted(model, found, nibbles=self.recipe.halves)

    def pieces(self, shape: Shape) -> Pieces | None:
        """Describe the cipher by what it may do to a block; None = every pixel is treated on its own (`pe`).

        What changes single values counts as a shuffle of pixels, of which it leaves as little.
        """
        recipe = self.recipe
        if not recipe.has_blocks:
            return None
        own = "own" in (recipe.pixels, recipe.negative) or recipe.colours == "pixel"
        shared = "shared" in (recipe.pixels, recipe.negative) or recipe.halves
        return Pieces(self.block, recipe.move, "own" if own else "shared" if shared else "kept", turned=recipe.turn,
                      negated=recipe.negative != "none", recoloured=recipe.colours == "block" and shape[0] > 1,
                      nibbles=recipe.halves)

    @property
    def _side(self) -> int:
        return self.block if self.recipe.has_blocks else 1

    def _split(self, images: Tensor) -> Tensor:
        """Return what the steps act on: the images, or their halves as twice as many channels."""
        return split_nibbles(images) if self.recipe.nibbles else images

    def _join(self, parts: Tensor) -> Tensor:
        return join_nibbles(parts) if self.recipe.nibbles else parts

    def _scramble(self, parts: Tensor, key: Tensors) -> Tensor:
        blocks = cut(parts, self._side)
        for step in self.recipe.steps():
            blocks = step.apply(blocks, key[step.key])
        return join(blocks, (parts.shape[1], parts.shape[2], parts.shape[3]))

    def _patch_map(self, keys: Keys, vit: VitShape) -> PatchMap | None:
        """Read off what the only key does to the patches of a ViT; None = it mixes them."""
        self.check(vit.image)
        channels, height, width = vit.image
        parts = (2 * channels if self.recipe.halves else channels, height, width)
        one = {name: value[:1] for name, value in keys.values.items()}
        return patch_map(image_map(lambda x: self._scramble(x, _repeated(one, len(x))), parts), vit.patch)

    def _obstacle(self, model: Model, vit: VitShape | None, count: int) -> str:
        """Say why a key cannot be absorbed, and what to change."""
        if vit is None:
            return f"the victim {model.factory!r}: name one of timm's plain vision transformers, or set absorb = 'none'"
        return (f"{count} keys at once, as no model absorbs more than one: set key_scope = 'global', or "
                "absorb = 'none'")

    def _mismatch(self, vit: VitShape) -> str:
        """Say that the ViT's patches do not match the blocks, and what to change."""
        height, width = vit.patch
        block = f"or block = {height}, " if height == width else ""
        return (f"block-scrambling: the ViT's patches of {height} x {width} pixels mix values of several encrypted "
                f"blocks of {self._side} x {self._side}, so that it cannot absorb the key: set patch_size = "
                f"{self._side} in the kwargs of [victim], {block}or absorb = 'none' (the ViT as it is)")


def _repeated(key: Tensors, count: int) -> Tensors:
    """Give `count` images the same key."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in key.items()}
