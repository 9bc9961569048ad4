"""Known pairs that no one key explains: some are of another key, or no pairs at all. The others vote them out."""

import torch
from torch import Tensor

from ppbench.attacks._key_map import Structure
from ppbench.attacks._key_pairs import Recovered, recover
from ppbench.seeding import generator

DRAWS = 8  # of as many pairs
LIKELY = 0.5  # share of a pair's values explained, above which it is taken to be of the same key


def agreed(structure: Structure, plain: Tensor, made: Tensor) -> tuple[Recovered, Tensor]:
    """Recover the key that explains most pairs to the last value (as in RANSAC, Fischler & Bolles 1981).

    A few pairs name a key, and the pairs that it explains, wholly or for the greater part, name another. A pair alone
    is explained by some key whatever it holds: it is believed against one other at most. Where no pairs agree, the key
    is recovered from all of them together.

    Args:
        structure: of the key.
        plain: levels `[k, blocks, values]`.
        made: what is said to be made of them.

    Returns:
        The key, and which pairs it was recovered from, `[k]` bool.
    """
    count = len(plain)
    best, rows = recover(structure, plain, made), torch.ones(count, dtype=torch.bool)
    if best.right == 1 or count == 1:
        return best, rows
    most = min(2, count - 1) - 1
    for few in _draws(count):
        explained = _explained(structure, recover(structure, plain[few], made[few]), plain, made)
        for some in (explained == 1, explained > LIKELY):
            if not some.any():
                continue
            found = recover(structure, plain[some], made[some])
            whole = _explained(structure, found, plain, made) == 1
            if int(whole.sum()) > most:
                best, rows, most = recover(structure, plain[whole], made[whole]), whole, int(whole.sum())
        if 2 * most > count:
            break
    return best, rows


def _explained(structure: Structure, found: Recovered, plain: Tensor, made: Tensor) -> Tensor:
    """Return the share of values that a key encrypts right, `[k]`."""
    return (found.key.encrypt(plain, structure.top) == made).double().mean((1, 2))


def _draws(count: int) -> list[Tensor]:
    """Return rows of pairs to begin with: every pair alone where they are few, then more and more together."""
    rng, found = generator(0), list(torch.arange(count).split(1))[:DRAWS]
    size = 2
    while size < count:
        found += [torch.randperm(count, generator=rng)[:size] for _ in range(DRAWS)]
        size *= 2
    return found
