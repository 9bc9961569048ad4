"""Solving the puzzle of shuffled blocks from the blocks' edges alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.attacks._assemble import Grid, assemble
from ppbench.attacks._seams import combo
from ppbench.attacks._solver import Search
from ppbench.blocks import cut, join, permute_rows
from ppbench.bounds import at_least
from ppbench.defense import Pieces, resize
from ppbench.view import View

_CHUNK = 2**23  # pairs of pieces held at a time; the results of a run depend on it


@dataclass(frozen=True)
class Jigsaw(Attack):
    """Put shuffled blocks back by how well their edges fit (Gallagher 2012; Sholomon et al. 2013).

    Boards are bred from one another, broken at their weak seams and grown again, and mended by exchanges of pieces.

    One permutation for all images of a key (global, or a client's) is solved once, from the mean log cost over them.

    Attributes:
        restarts: boards a puzzle that are grown at first, each from a random piece.
        rounds: boards at most that are bred from these.
        joint: under one key, costs are averaged over at most this many released images, the targets first.
    """

    requires = frozenset({"images", "algorithm"})
    default_threat = "ciphertext-only"
    ceiling = 0.95
    restarts: int = Search().restarts
    rounds: int = Search().rounds
    joint: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "restarts", "joint")
        at_least(self, 0, "rounds")

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the released images with their blocks where they fit best."""
        pieces = view.algorithm.defense.pieces(view.image_shape)
        same_size = view.released_shape[1:] == view.image_shape[1:]
        if pieces is None or not pieces.moved or not same_size:
            return Reconstruction(resize(view.images, view.image_shape), aligned=view.has_partner,
                                  note="degenerate: as-released")
        grid = (view.image_shape[1] // pieces.size, view.image_shape[2] // pieces.size)
        blocks = cut(view.images, pieces.size)
        keys = _keys(view)
        boards = self._solve_each(blocks, grid, rng) if keys is None else \
            self._solve_keys(cut(view.release.images, pieces.size), keys, view.target_rows, grid, rng)
        solved = join(permute_rows(blocks, boards.flatten(1)), view.released_shape)
        return Reconstruction(resize(solved, view.image_shape), aligned=view.has_partner, note=_note(pieces))

    def _solve_each(self, blocks: Tensor, grid: Grid, rng: torch.Generator) -> Tensor:
        """Solve every image on its own: `[N, H, W]` boards."""
        return torch.cat([assemble(combo(some), grid, rng, self._search) for some in self._chunks(blocks)])

    def _solve_keys(self, blocks: Tensor, keys: Tensor, targets: Tensor, grid: Grid, rng: torch.Generator) -> Tensor:
        """Solve one puzzle a key: the targets' boards `[n, H, W]` from all blocks `[M, ...]` and their keys `[M]`."""
        boards = torch.empty(len(targets), *grid, dtype=torch.int64)
        for key in keys[targets].unique():
            mine = keys[targets] == key
            rest = keys == key
            rest[targets] = False
            rows = torch.cat([targets[mine], rest.nonzero()[:, 0]])[: self.joint]
            boards[mine] = self.solve_together(blocks[rows], grid, rng)
        return boards

    def solve_together(self, blocks: Tensor, grid: Grid, rng: torch.Generator) -> Tensor:
        """Solve images `[N, blocks, C, size, size]` under one key as one puzzle, its costs the mean of theirs.

        Returns:
            `[1, H, W]` the block that belongs at each place.
        """
        total = torch.stack([combo(some).sum(0) for some in self._chunks(blocks)]).sum(0, keepdim=True)
        return assemble(total / len(blocks), grid, rng, self._search)

    def _chunks(self, blocks: Tensor) -> tuple[Tensor, ...]:
        """Split images by memory: costs take P^2 entries an image."""
        return torch.split(blocks, max(1, _CHUNK // blocks.shape[1]**2))

    @property
    def _search(self) -> Search:
        return Search(restarts=self.restarts, rounds=self.rounds)


def _keys(view: View) -> Tensor | None:
    """Return which key protects each released image, as far as everyone can see; None = each has its own."""
    if view.algorithm.key_scope == "global":
        return torch.zeros(len(view.release), dtype=torch.int64)
    return view.release.clients


def _note(pieces: Pieces) -> str:
    """Say what of the cipher the solver does not undo."""
    if pieces.pixels != "kept":
        return "pixels inside pieces are shuffled: seams carry nothing"
    changes = {"turned": pieces.turned, "negated": pieces.negated, "recoloured": pieces.recoloured}
    names = [name for name, done in changes.items() if done]
    return f"pieces may be {', '.join(names)}: taken as they are" if names else ""
