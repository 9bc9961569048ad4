"""Known pairs that no one key explains: some are of another key, or no pairs at all. The others vote them out."""

import torch
from torch import Tensor

from ppbench.attacks._key_map import Structure
from ppbench.attacks._key_pairs import Recovered, recover
from ppbench.seeding import generator

DRAWS = 8  # of as many pairs
EXPLAINED = 0.5  # share of a pair's values, above which it is taken to be of the same key


def agreed(structure: Structure, plain: Tensor, made: Tensor) -> tuple[Recovered, Tensor]:
    """Recover the key that explains most pairs (as in RANSAC, Fischler & Bolles 1981).

    A few pairs name a key, the pairs that it explains for the greater part are taken together, and of all such sets the
    largest that one key explains without exception is kept. Where there is none, all pairs are.

    Args:
        structure: of the key.
        plain: levels `[k, blocks, values]`.
        made: what is said to be made of them.

    Returns:
        The key, and which pairs it was recovered from, `[k]` bool.
    """
    count = len(plain)
    best, rows = recover(structure, plain, made), torch.ones(count, dtype=torch.bool)
    if best.right == 1:
        return best, rows
    most = 0
    for few in _draws(count):
        key = recover(structure, plain[few], made[few]).key
        explained = (key.encrypt(plain, structure.top) == made).double().mean((1, 2)) > EXPLAINED
        if int(explained.sum()) <= most:
            continue
        found = recover(structure, plain[explained], made[explained])
        if found.right == 1:
            best, rows, most = found, explained, int(explained.sum())
    return best, rows


def _draws(count: int) -> list[Tensor]:
    """Return rows of pairs to begin with: every pair alone where they are few, then more and more together."""
    rng, found = generator(0), list(torch.arange(count).split(1))[:DRAWS]
    size = 2
    while size < count:
        found += [torch.randperm(count, generator=rng)[:size] for _ in range(DRAWS)]
        size *= 2
    return found
