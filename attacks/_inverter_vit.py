"""A vision transformer that reads the blocks of a released image and corrects a first estimate."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppbench.attacks._blocks import transformer
from ppbench.attacks._inverter import Problem
from ppbench.blocks import cut, join

MAX_TOKENS = 256  # of an image: attention costs their square


class VitCodec(nn.Module):
    """Encoder of released patches, decoder of plain ones (after the masked autoencoder, He et al. 2022).

    The decoder has one query for every patch of the plain image: its place, the first estimate there and the label.
    Where blocks stay, query i starts with token i; where they were moved, queries look for what they need among all
    tokens, and under a random order (`free`) these have no place. Whole blocks that were only moved may be copied: each
    query then picks a mixture of them.

    Args: `released` `[n, c, h, w]`, `base` `[n, C, H, W]`, `labels` `[n]` (-1 = unknown); returns `[n, C, H, W]`.
    """

    def __init__(self, problem: Problem, width: int, depth: int) -> None:
        super().__init__()
        channels, height, across = problem.image
        self.problem = problem
        self.side = patch_side(problem)
        self.grid = (math.ceil(height / self.side), math.ceil(across / self.side))
        self.padded = (channels, self.grid[0] * self.side, self.grid[1] * self.side)
        c, h, w = problem.released
        self.step = max(1, math.ceil(h / self.grid[0]), math.ceil(w / self.grid[1]))
        tokens, pieces = self.grid[0] * self.grid[1], problem.pieces
        self.moved = pieces is not None and pieces.moved
        self.copies = (pieces is not None and pieces.moved and pieces.pixels == "kept"
                       and problem.released == problem.image and self.padded == problem.image)
        self.token = nn.Linear(c * self.step**2, width)
        self.place = None if problem.free else nn.Parameter(_small(tokens, width))
        self.encoder = transformer(width, depth)
        self.query = nn.Linear(channels * self.side**2, width)
        self.query_place = nn.Parameter(_small(tokens, width))
        self.label = nn.Embedding(problem.classes + 1, width)
        nn.init.zeros_(self.label.weight)
        self.decoder = transformer(width, depth)
        self.norm = nn.LayerNorm(width)
        self.patch = nn.Linear(width, channels * self.side**2)
        nn.init.zeros_(self.patch.weight)
        nn.init.zeros_(self.patch.bias)
        if self.copies:
            self.asks, self.offers = nn.Linear(width, width), nn.Linear(width, width)
            self.share = nn.Linear(width, 1)
            nn.init.zeros_(self.share.weight)
            nn.init.zeros_(self.share.bias)

    def forward(self, released: Tensor, base: Tensor, labels: Tensor) -> Tensor:
        """Return the correction."""
        offered = cut(self._fitted(released), self.step).flatten(2)
        tokens = self.token(2 * offered - 1)
        tokens = self.encoder(tokens if self.place is None else tokens + self.place)
        estimated = cut(_padded(base, self.padded), self.side).flatten(2)
        queries = self.query(2 * estimated - 1) + self.query_place + self.label(labels + 1)[:, None]
        if self.moved:
            x = self.decoder(torch.cat([queries, tokens], 1))
            queries, tokens = self.norm(x).split(queries.shape[1], 1)
        else:
            queries = self.norm(self.decoder(queries + tokens))
        change = self.patch(queries)
        if self.copies:
            fit = self.asks(queries) @ self.offers(tokens).transpose(1, 2) / math.sqrt(tokens.shape[2])
            change = change + self.share(queries) * (fit.softmax(2) @ offered - estimated)
        _, height, across = self.problem.image
        blocks = change.unflatten(2, (-1, self.side, self.side))
        return join(blocks, self.padded)[..., :height, :across]

    def _fitted(self, released: Tensor) -> Tensor:
        """Bring a released image to a size that the tokens tile."""
        wanted = (self.grid[0] * self.step, self.grid[1] * self.step)
        if released.shape[2:] == wanted:
            return released
        if released.shape[2:] == self.problem.image[1:]:
            return _padded(released, (released.shape[1], *wanted))
        return F.interpolate(released, wanted, mode="bilinear", antialias=True)


def patch_side(problem: Problem) -> int:
    """Return the side of a patch: that of the defense's blocks, or 4 pixels; a multiple where that is too many."""
    _, height, width = problem.image
    side = 4 if problem.pieces is None else problem.pieces.size
    unit = side
    while math.ceil(height / side) * math.ceil(width / side) > MAX_TOKENS:
        side += unit
    return side


def _small(tokens: int, width: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(tokens, width), std=0.02)


def _padded(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    _, height, width = shape
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]), mode="replicate")
