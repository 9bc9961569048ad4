"""Solving the puzzle of shuffled blocks from the blocks' edges alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._arranger import ArrangerPrior, size_of_whole_pieces
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._key_statistics import MOST, guess
from ppbench.attacks._key_structure import structure_of
from ppbench.attacks._seam_prior import SeamPrior
from ppbench.attacks._solver import Search
from ppbench.attacks._solving import Solver, check_size
from ppbench.attacks._states import states_of
from ppbench.attacks._upright import UprightPrior, upright
from ppbench.blocks import cut, join
from ppbench.bounds import above_zero, at_least, between
from ppbench.defense import Pieces, resize
from ppbench.view import View

MOST_EFFORT = 2**31 - 1  # compiled code counts on
_ENOUGH = 8  # images of one key: with so many, what is measured tells all neighbours
_UNHELPFUL = "seams as measured: with what was learnt of them no more of the held-out public images were solved"
_TOLD = "the state of a whole image is told right, or mirrored, for {:.0%} of held-out public images"
_SHUFFLED = "pixels inside pieces are shuffled: seams tell little"


@dataclass(frozen=True)
class Jigsaw(Attack):
    """Put shuffled blocks back by how well their edges fit (Gallagher 2012; Sholomon et al. 2013).

    Seams cost what is measured (MGC and linear prediction) and, where blocks are only moved and the adversary has
    public images, how much they surprise a network that learnt from those, if it helps with held-out ones. Boards are
    bred from one another, broken at their weak seams and grown again, and mended by exchanges of pieces.

    Blocks may be turned, negated and recoloured: every block is tried in every state, and the whole image is at last
    brought into the state in which a network finds it most like public images.

    One permutation for all images of a key (global, or a client's) is solved once, from the mean log cost over them.
    Where such a key shuffles the pixels of all blocks alike, the correlations of values tell their order first.

    Attributes:
        restarts: boards a puzzle that are grown at first, each from a random piece.
        effort: pieces laid at most, on all boards of a puzzle.
        loops: begin from the largest part that loops of four seams hold together as well, where blocks are only moved.
        linear: and from the largest that a linear program puts together, which takes long.
        repair: at last, assign the pieces of half of all places anew while that lowers the cost.
        anneal: and try so many random exchanges and states a piece, as the board cools.
        joint: under one key, costs are averaged over at most this many released images, the targets first.
        steps: optimiser steps of the network that looks at seams, and of the one that tells an image's state;
            0 = measured costs alone, and the state is left open.
        width: of the network that looks at seams.
        rate: its highest learning rate.
        place_steps: optimiser steps of a network that tells where in an image a piece may lie (that of `vit-inverter`),
            where images are solved one by one and their pieces are only moved; 0 = none.
    """

    requires = frozenset({"images", "algorithm"})
    uses = frozenset({"public"})
    default_threat = "ciphertext-only"
    ceiling = 0.95
    restarts: int = 16
    effort: int = 200_000
    loops: bool = True
    linear: bool = False
    repair: bool = False
    anneal: int = 0
    joint: int = 64
    steps: int = 400
    width: int = 48
    rate: float = 4e-3
    place_steps: int = 0

    def __post_init__(self) -> None:
        between(self, 1, MOST_EFFORT, "restarts", "effort")
        between(self, 0, MOST_EFFORT, "anneal")
        at_least(self, 1, "joint", "width")
        between(self, 0, MOST_STEPS, "steps", "place_steps")
        above_zero(self, "rate")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the networks that help with this cipher."""
        pieces = _pieces(view)
        if pieces is None or pieces.pixels != "kept" or "public" not in view.granted:
            return {}
        flags = (pieces.turned, pieces.negated, pieces.recoloured)
        found: dict[str, Prior] = {}
        grid = _grid(view, pieces)
        check_size(grid, states_of(pieces, view.released_shape[0]))
        alone = min(_fewest(view), self.joint) < _ENOUGH and grid != (1, 1)
        if self.steps and alone and not any(flags):  # with states, it misled more than it helped
            found["seams"] = SeamPrior(pieces.size, self.steps, self.width, self.rate)
        if self.steps and any(flags):
            found["upright"] = UprightPrior(*flags, self.steps)
        if self.place_steps and _keys(view) is None and size_of_whole_pieces(view) is not None:
            found["places"] = ArrangerPrior(pieces.size, self.place_steps, 24, 96, 2, 2e-3)
        return found

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the released images with their blocks where they fit best."""
        pieces = _pieces(view)
        if pieces is None:
            return Reconstruction(resize(view.images, view.image_shape), aligned=view.has_partner,
                                  note="degenerate: as-released, as no blocks are permuted")
        states = states_of(pieces if pieces.pixels == "kept" else None, view.released_shape[0])
        named = self.priors(view)
        seams = named.get("seams")
        net = seams.load(priors["seams"], view.image_shape[0]) if isinstance(seams, SeamPrior) else None
        search = Search(restarts=self.restarts, effort=self.effort, loops=int(self.loops), linear=int(self.linear),
                        repair=int(self.repair), anneal=self.anneal)
        places = named.get("places")
        arranger = places.load(priors["places"], view) if isinstance(places, ArrangerPrior) else None
        solver = Solver(search, states, net, places=arranger)
        keys = _keys(view)
        images, note = self._each(view, pieces, solver, rng) if keys is None else \
            self._by_key(view, pieces, keys, solver, rng)
        notes = [note, _UNHELPFUL if seams is not None and net is None else ""]
        turned = named.get("upright")
        if isinstance(turned, UprightPrior):
            groups = torch.arange(len(images)) if keys is None else keys[view.target_rows]
            images = upright(images, states, turned.load(priors["upright"], view.image_shape[0]), groups)
            notes.append(_TOLD.format(float(priors["upright"]["told"])))
        elif len(states) > 1:
            notes.append("up to the state of the whole image")
        return Reconstruction(resize(images, view.image_shape), aligned=view.has_partner,
                              note="; ".join(filter(None, notes)))

    def _each(self, view: View, pieces: Pieces, solver: Solver, rng: torch.Generator) -> tuple[Tensor, str]:
        """Solve every target on its own."""
        blocks = cut(view.images, pieces.size)
        boards = solver.each(blocks, _grid(view, pieces), rng)
        note = "" if pieces.pixels == "kept" else _SHUFFLED
        return join(solver.laid(blocks, boards), view.released_shape), note

    def _by_key(self, view: View, pieces: Pieces, keys: Tensor, solver: Solver, rng: torch.Generator,
                ) -> tuple[Tensor, str]:
        """Solve one puzzle a key: of each released image the key is known, `[M]`."""
        found = torch.empty(view.n_targets, *view.released_shape)
        fits = []
        targets = view.target_rows
        for key in keys[targets].unique():
            mine = keys[targets] == key
            rest = keys == key
            rest[targets] = False
            rows = torch.cat([targets[mine], rest.nonzero()[:, 0]])
            images, fit = _pixels_back(view, pieces, rows, max(int(mine.sum()), self.joint), rng)
            blocks = cut(images, pieces.size)
            board = solver.together(blocks[: self.joint], _grid(view, pieces), rng)
            blocks = blocks[: int(mine.sum())]
            boards = board[torch.zeros(len(blocks), dtype=torch.int64)]
            found[mine] = join(solver.laid(blocks, boards), view.released_shape)
            fits.append(fit)
        return found, "" if pieces.pixels == "kept" else _in_words(fits)


def _pieces(view: View) -> Pieces | None:
    """Return what happens to the blocks; None = they stay where they are, or the images change their size."""
    pieces = view.algorithm.defense.pieces(view.image_shape)
    same_size = view.released_shape[1:] == view.image_shape[1:]
    return pieces if pieces is not None and pieces.moved and same_size else None


def _grid(view: View, pieces: Pieces) -> tuple[int, int]:
    return view.image_shape[1] // pieces.size, view.image_shape[2] // pieces.size


def _keys(view: View) -> Tensor | None:
    """Return which key protects each released image, as far as everyone can see; None = each has its own."""
    if view.algorithm.key_scope == "global":
        return torch.zeros(len(view.release), dtype=torch.int64)
    return view.release.clients


def _fewest(view: View) -> int:
    """Return how many released images the rarest key protects."""
    keys = _keys(view)
    return 1 if keys is None else int(keys.unique(return_counts=True)[1].min())


def _pixels_back(view: View, pieces: Pieces, rows: Tensor, wanted: int, rng: torch.Generator,
                 ) -> tuple[Tensor, float | None]:
    """Return the first `wanted` released images of one key, their pixels put back where all blocks are shuffled alike.

    All images of the key tell how, as far as memory allows. Beside them stands how well correlations agree; None =
    nothing was put back.
    """
    if pieces.pixels == "kept":
        return view.release.images[rows[:wanted]], None
    structure = structure_of(view.algorithm, view.image_shape)
    if pieces.pixels == "shared" and structure is not None and "public" in view.granted:
        most = max(wanted, MOST // (structure.blocks * structure.values))
        levels = structure.levels(view.release.images[rows[:most]])
        found = guess(structure, levels, structure.levels(view.public.pixels), rng)
        if found is not None:
            key, fit = found
            return structure.image_of(key.decrypt(levels[:wanted], structure.top)), fit
    return view.release.images[rows[:wanted]], None


def _in_words(fits: Sequence[float | None]) -> str:
    """Say how well the pixels of all blocks were put back, of one key or of several."""
    found = [fit for fit in fits if fit is not None]
    if not found:
        return _SHUFFLED
    keys = "" if len(fits) == 1 else f" for {len(found)} of {len(fits)} keys"
    return f"pixels by statistics{keys}: correlations agree to {min(found):.4f}{' at least' if len(found) > 1 else ''}"
