"""One picture cut up, shuffled and put together again: what `jigsaw` does, to look at."""

import io
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ppbench.attack import Attack, Priors, check_reconstruction
from ppbench.blocks import turn
from ppbench.data import Dataset, Images, Shape
from ppbench.defense import draw_keys
from ppbench.errors import UserError
from ppbench.files import resolved, write_atomic
from ppbench.plugins import build
from ppbench.puzzle import puzzle_scores, symmetries_of
from ppbench.ref import Ref
from ppbench.seeding import derive_seed, generator
from ppbench.threat import ThreatModel, grant
from ppbench.view import Algorithm, Capability, Sealed, View, quantised

GAP = 8  # grey pixels between the three pictures
WIDE = 2.0  # from this ratio of width to height on they stand below one another
_GREY_MODES = frozenset({"1", "L", "LA"})
_DEEP_MODES = ("I", "F")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in pillow's grey
_GRANTED: frozenset[Capability] = frozenset({"images", "algorithm"})
_LEARNING: frozenset[Capability] = frozenset({"public"})
_SAME = 4 / 255  # mean difference of two copies of a picture, at most, in thumbnails of so many pixels a side:
_THUMBNAIL = 16
_TABLES = 5  # float32 tables of all seams that the attack holds at a time, about; with a network that looks at them:
_TABLES_LEARNT = 7
_A_VALUE = 80  # bytes that all copies of a value of the picture take together, about


@dataclass(frozen=True)
class Settings:
    """How a picture is shuffled, and how it is solved.

    Attributes:
        piece: side of a piece in pixels.
        turn: turn and mirror every piece its own way.
        negative: make a negative of every piece or not.
        recolour: exchange the colour channels of every piece.
        seed: of all that is random.
        effort: pieces that the attack lays at most; None = its own default.
        public: folder of photos that its networks learn from first; None = they are left out.
        steps: optimiser steps of theirs; None = the attack's default.
    """

    piece: int = 16
    turn: bool = False
    negative: bool = False
    recolour: bool = False
    seed: int = 0
    effort: int | None = None
    public: Path | None = None
    steps: int | None = None

    @property
    def cipher(self) -> Ref:
        """Name the defense that shuffles the pieces."""
        if not (self.turn or self.negative or self.recolour):
            return Ref("defenses", "patch-shuffle", {"patch": self.piece})
        steps = {"turn": self.turn, "negative": "block" if self.negative else "none",
                 "colours": "block" if self.recolour else "none"}
        return Ref("defenses", "block-scrambling", {"preset": "etc", "block": self.piece, **steps})

    @property
    def solver(self) -> Ref:
        """Name the attack."""
        given = {"effort": self.effort, "steps": self.steps}
        return Ref("attacks", "jigsaw", {name: value for name, value in given.items() if value is not None})

    def rng(self, purpose: str) -> torch.Generator:
        """Return the generator of one purpose, whatever the others draw."""
        return generator(derive_seed("demo", purpose, self.seed))


@dataclass(frozen=True)
class Material:
    """What a demonstration works on.

    Attributes:
        picture: `[C, H, W]` in [0, 1], as it was read.
        original: the part of it that whole pieces fill.
        public: `[N, C, h, w]` photos to learn from; None = none are given.
    """

    picture: Tensor
    original: Tensor
    public: Tensor | None


def demonstrate(image: Path, output: Path, settings: Settings) -> Iterator[str]:
    """Shuffle a picture, solve it, save before and after; give the lines of a report as they become known.

    Args:
        image: any file that pillow reads.
        output: a PNG.
        settings: of cipher and attack.

    Raises:
        UserError: a file cannot be read or written, the pieces do not fit, or there are too many.
    """
    attack = build(settings.solver)
    material = gathered(image, output, settings)
    yield from _described(material, settings)
    view = view_of(material.original, settings, material.public)
    started = time.perf_counter()
    priors = learnt(attack, view, settings.rng("training"))
    trained = time.perf_counter()
    found = attack.run(view, priors, settings.rng("attack"))
    check_reconstruction(found, view)
    yield f"attack: {time.perf_counter() - started:.1f} s" \
        + (f", of which training {trained - started:.1f} s" if priors else "")
    solved = found.images[0].detach().float().clamp(0, 1)
    yield from in_words(scores_of(solved, material.original, view))
    if found.note:
        yield f"note: {found.note}"
    save(output, side_by_side(material.original, view.images[0], solved))
    yield f"picture (original, shuffled, solved): {output}"


def gathered(image: Path, output: Path, settings: Settings) -> Material:
    """Read all that is needed, and check all that can be checked before anything is computed.

    Raises:
        UserError: see `demonstrate`.
    """
    if settings.steps is not None and settings.public is None:
        raise UserError("--steps is about photos to learn from: give --public FOLDER as well")
    picture = read_picture(image)
    original = cropped(picture, settings.piece)
    channels, height, width = original.shape
    check_memory(settings, (channels, height, width))
    side = max(2 * settings.piece, min(height, width))
    public = None if settings.public is None else public_photos(settings.public, side, picture)
    check_output(output, image)
    return Material(picture, original, public)


def read_picture(path: Path) -> Tensor:
    """Read a picture as `[C, H, W]` in [0, 1], turned upright as its camera noted; grey stays grey.

    Raises:
        UserError: there is none, or pillow cannot read it.
    """
    try:
        with catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(path) as picture:
            if picture.mode.startswith(_DEEP_MODES):
                raise UserError(f"the picture {str(path)!r} has more than 8 bits a pixel: save it with 8 bits")
            upright = ImageOps.exif_transpose(picture)
            pixels = np.asarray(upright.convert("L" if picture.mode in _GREY_MODES else "RGB"))
    except FileNotFoundError as error:
        raise UserError(f"the picture {str(path)!r} does not exist: give the path of an image file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"the picture {str(path)!r} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: give a "
                        "smaller one") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"the picture {str(path)!r} cannot be read ({error}): give an image file that pillow "
                        "reads, say PNG or JPEG") from error
    return _from_bytes(pixels.reshape(1, *pixels.shape[:2], -1))[0]


def cropped(picture: Tensor, piece: int) -> Tensor:
    """Cut the central part out of a picture `[C, H, W]` that whole pieces fill.

    Raises:
        UserError: not one fits.
    """
    _, height, width = picture.shape
    if piece > min(height, width):
        raise UserError(f"no piece of {piece} x {piece} pixels fits into a picture of {width} x {height}: choose "
                        f"--piece {min(height, width)} or less")
    top, left = height % piece // 2, width % piece // 2
    return picture[:, top:top + height // piece * piece, left:left + width // piece * piece]


def check_output(output: Path, image: Path) -> None:
    """Refuse a path that cannot be written, before anything is computed.

    Raises:
        UserError: says which to choose.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"the picture is written as PNG: choose a name for --output that ends in .png, not "
                        f"{output.name!r}")
    if resolved(Path(), str(output)) == resolved(Path(), str(image)):
        raise UserError(f"{str(output)!r} would replace the picture itself: choose another name with --output")
    try:
        if output.is_dir():
            raise IsADirectoryError("it is a folder")
        output.parent.mkdir(parents=True, exist_ok=True)
        probe = output.with_name(f".{output.name}.{os.getpid()}.tmp")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _not_written(output, error) from error


def check_memory(settings: Settings, shape: Shape) -> None:
    """Refuse more pieces of a picture (C, H, W) than this machine has memory for, rather than be killed for it.

    Raises:
        UserError: says what would do.
    """
    states = len(symmetries_of(build(settings.cipher).pieces(shape), shape[0]))
    count = (shape[1] // settings.piece) * (shape[2] // settings.piece)
    pair = 4 * 4 * states * (_TABLES if settings.public is None else _TABLES_LEARNT)  # bytes
    needed = pair * count**2 + _A_VALUE * math.prod(shape)
    free = psutil.virtual_memory().available
    if needed > free:
        raise UserError(f"{count:,} pieces{f' in {states} states' if states > 1 else ''} need about "
                        f"{needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free: choose a larger "
                        "--piece, or a smaller picture")


def public_photos(folder: Path, side: int, picture: Tensor) -> Tensor:
    """Return the central squares of the photos in a folder, `[N, C, side, side]`, without the picture itself.

    Nor with a copy of it, turned, mirrored or saved with some loss; parts of it are not noticed.

    Args:
        folder: of image files, as the data set `folder` reads them.
        side: in pixels.
        picture: `[C, H, W]` that is to be reconstructed: whoever has it needs no attack. The photos get as many
            channels.

    Raises:
        UserError: there are none, or no others.
    """
    dataset: Dataset = build(Ref("datasets", "folder", file=str(folder)))
    pixels = np.concatenate([pool.pixels for pool in dataset.pools(side).values()])
    photos = _in_channels(_from_bytes(pixels), len(picture))
    own = turn(_thumbnails(_square(picture, side)[None]).expand(1, 8, -1, -1, -1), torch.arange(8)[None])[0]
    others = (_thumbnails(photos)[:, None] - own).abs().mean((2, 3, 4)).amin(1) > _SAME
    if not others.any():
        raise UserError(f"the folder {str(folder)!r} has no photo but the picture itself: put others into it")
    return photos[others]


def view_of(original: Tensor, settings: Settings, public: Tensor | None) -> View:
    """Shuffle a picture `[C, H, W]` under a fresh key and return what an adversary sees of it."""
    private, ref = _unlabelled(original[None]), settings.cipher
    defense = build(ref)
    keys = draw_keys(defense, "image", 1, private.shape, settings.rng("key"))
    release = quantised(defense.protect(private, keys, settings.rng("cipher")), 8)
    granted = _GRANTED if public is None else _GRANTED | _LEARNING
    everything = Sealed(granted, private.shape, release.shape, 1, 1, release=release,
                        target_rows=torch.arange(1), public=None if public is None else _unlabelled(public),
                        algorithm=Algorithm(ref, "image", 8))
    return View(grant(everything, ThreatModel("demo", granted)))


def learnt(attack: Attack, view: View, rng: torch.Generator) -> Priors:
    """Train what an attack wants to have learnt before."""
    return {name: prior.train(prior.seen(view), rng) for name, prior in attack.priors(view).items()}


def scores_of(solved: Tensor, original: Tensor, view: View) -> dict[str, float]:
    """Score a solution `[C, H, W]` as `puzzle_scores` does.

    Besides, `states`: how many a piece could be in; `as_it_stands`: share of pieces in their place with the whole
    picture left as it was estimated.
    """
    pieces = view.algorithm.defense.pieces(view.image_shape)
    assert pieces is not None
    scores = {name: float(values[0]) for name, values in puzzle_scores(solved[None], original[None], pieces).items()}
    plain = replace(pieces, turned=False, negated=False, recoloured=False)
    standing = float(puzzle_scores(solved[None], original[None], plain)["piece_direct"].nan_to_num())
    return {**scores, "states": len(symmetries_of(pieces, len(original))), "as_it_stands": standing}


def in_words(scores: Mapping[str, float]) -> list[str]:
    """Say what `scores_of` found, one line each."""
    stateful = scores["states"] > 1
    frame = ", the picture as a whole turned or coloured as fits best" if stateful else ""
    upright = _yes(float(0 < scores["as_it_stands"] == scores["piece_direct"]))
    return [f"direct comparison (Dc): {scores['piece_direct']:.1%} of the pieces are in their place{frame}",
            f"neighbour comparison (Nc): {scores['piece_neighbour']:.1%} of the pairs of neighbours are there",
            f"largest component: {scores['piece_largest']:.1%} of the places are in the largest part put together",
            f"perfect: {_yes(scores['piece_perfect'])}",
            f"seams cost less than the original's: {_yes(scores['piece_cheaper'])}",
            *([f"whole picture the right way round and in its colours: {upright}"] if stateful else [])]


def side_by_side(*pictures: Tensor) -> Tensor:
    """Join pictures `[C, H, W]`, grey between them: beside one another, or below where they are wide."""
    channels, height, width = pictures[0].shape
    axis = 1 if width >= WIDE * height else 2
    gap = torch.full((channels, *((GAP, width) if axis == 1 else (height, GAP))), 0.5)
    parts = [part for picture in pictures for part in (gap, picture)]
    return torch.cat(parts[1:], axis)


def save(output: Path, picture: Tensor) -> None:
    """Write a picture `[C, H, W]` as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(content, "PNG")
    try:
        write_atomic(output, content.getvalue())
    except OSError as error:
        raise _not_written(output, error) from error


def _described(material: Material, settings: Settings) -> Iterator[str]:
    """Say what is to be solved."""
    before, after, piece = material.picture.shape, material.original.shape, settings.piece
    if before != after:
        yield f"cropped to whole pieces: from {before[2]} x {before[1]} to {after[2]} x {after[1]} pixels"
    rows, columns = after[1] // piece, after[2] // piece
    done = {"turned": settings.turn, "negative": settings.negative, "recoloured": settings.recolour and after[0] > 1}
    how = ", ".join(["shuffled", *(name for name, so in done.items() if so)])
    yield f"grid: {rows} x {columns} (rows x columns), pieces of {piece} x {piece} pixels: " \
        + ("1 piece, nothing to shuffle" if rows * columns == 1 else f"{rows * columns} pieces, {how}")
    if material.public is not None:
        count, _, side, _ = material.public.shape
        yield f"public photos to learn from: {count}, of {side} x {side} pixels"


def _not_written(output: Path, error: OSError) -> UserError:
    return UserError(f"the picture {str(output)!r} cannot be written: {error.strerror or error}; choose another name "
                     "with --output")


def _unlabelled(pixels: Tensor) -> Images:
    return Images(pixels, torch.zeros(len(pixels), dtype=torch.int64), torch.arange(len(pixels)))


def _from_bytes(pixels: np.ndarray[Any, Any]) -> Tensor:
    """Turn uint8 `[N, H, W, C]` into `[N, C, H, W]` in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255


def _in_channels(images: Tensor, channels: int) -> Tensor:
    """Bring images `[N, C, H, W]` to 1 channel or 3."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)


def _square(picture: Tensor, side: int) -> Tensor:
    """Crop a picture to its central square and resize it, as the data set does but for rounding."""
    _, height, width = picture.shape
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = picture[None, :, top:top + least, left:left + least]
    return F.interpolate(square, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _thumbnails(squares: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(squares, min(_THUMBNAIL, squares.shape[3]))


def _yes(value: float) -> str:
    return "yes" if value == 1 else "no"
