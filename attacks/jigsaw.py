"""Solving the puzzle of shuffled blocks from the blocks' edges alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.attacks._assemble import Grid, Search, assemble
from ppbench.attacks._seams import combo
from ppbench.blocks import cut, join, permute_rows
from ppbench.defense import resize
from ppbench.view import View

_CHUNK = 2**23  # cost entries and places of boards held at a time; the results of a run depend on it


@dataclass(frozen=True)
class Jigsaw(Attack):
    """Put shuffled blocks back by how well their edges fit (Gallagher 2012; Sholomon et al. 2013).

    One permutation for all images (a global key) is solved once, from the mean log cost over many images.

    Attributes:
        restarts: boards a puzzle that a generation grows, each from a random piece.
        generations: at most this many recombinations of the boards found.
        joint: under a global key, costs are averaged over at most this many released images, the targets first.
    """

    requires = frozenset({"images", "algorithm"})
    default_threat = "ciphertext-only"
    restarts: int = 16
    generations: int = 24
    joint: int = 64

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.joint < 1 or self.generations < 0:
            raise ValueError("restarts and joint must be at least 1, generations at least 0")

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the released images with their blocks where they fit best."""
        pieces = view.algorithm.defense.pieces(view.image_shape)
        same_size = view.released_shape[1:] == view.image_shape[1:]
        if pieces is None or not pieces.moved or not same_size:
            return Reconstruction(resize(view.images, view.image_shape), aligned=view.has_partner,
                                  note="degenerate: as-released")
        grid = (view.image_shape[1] // pieces.size, view.image_shape[2] // pieces.size)
        blocks = cut(view.images, pieces.size)
        if view.algorithm.key_scope == "global":
            boards = self._solve_together(cut(self._under_one_key(view), pieces.size), grid, rng)
            boards = boards.expand(len(blocks), *grid)
        else:
            boards = self._solve_each(blocks, grid, rng)
        solved = join(permute_rows(blocks, boards.flatten(1)), view.released_shape)
        note = "" if pieces.pixels == "kept" else "pixels inside pieces are shuffled: seams carry nothing"
        return Reconstruction(resize(solved, view.image_shape), aligned=view.has_partner, note=note)

    def _solve_each(self, blocks: Tensor, grid: Grid, rng: torch.Generator) -> Tensor:
        """Solve every image on its own: `[N, H, W]` boards."""
        return torch.cat([assemble(combo(some), grid, rng, self._search) for some in self._chunks(blocks)])

    def _solve_together(self, blocks: Tensor, grid: Grid, rng: torch.Generator) -> Tensor:
        """Solve all images as one puzzle: `[1, H, W]`, its costs the mean of theirs."""
        total = torch.stack([combo(some).sum(0) for some in self._chunks(blocks)]).sum(0, keepdim=True)
        return assemble(total / len(blocks), grid, rng, self._search)

    def _under_one_key(self, view: View) -> Tensor:
        """Return up to `joint` released images, the targets first."""
        released = view.release.images
        rest = torch.ones(len(released), dtype=torch.bool)
        rest[view.target_rows] = False
        return torch.cat([view.images, released[rest]])[: self.joint]

    def _chunks(self, blocks: Tensor) -> tuple[Tensor, ...]:
        """Split images by memory: costs take P^2 entries an image, boards some 8 P for every restart."""
        count = blocks.shape[1]
        return torch.split(blocks, max(1, _CHUNK // (count * (count + 8 * self.restarts))))

    @property
    def _search(self) -> Search:
        return Search(restarts=self.restarts, generations=self.generations)
