"""The nearest-neighbour audit on CIFAR-10: planted copies that it finds, and honest releases that it accuses."""

from collections.abc import Callable, Iterator, Mapping

import torch
from _real import cifar10
from _table import Figure, at_least
from scipy.stats import binom
from torch import Tensor

from ppbench.audit.copies import Audit, Parts, audit
from ppbench.audit.release import searches
from ppbench.audit.spaces import Search
from ppbench.data import Images
from ppbench.judge import Judge, train_judge
from ppbench.seeding import generator

COUNT = 200  # of private, held-out, public and released images each
PLANTED = 5
LEVEL = 0.05
DISGUISES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "as they are": lambda x, _: x,
    "mirrored": lambda x, _: x.flip(3),
    "shifted by 2 pixels": lambda x, _: x.roll((2, -2), (2, 3)),
    "noise of 0.02": lambda x, rng: (x + 0.02 * torch.randn(x.shape, generator=rng)).clamp(0, 1),
    "noise of 0.05": lambda x, rng: (x + 0.05 * torch.randn(x.shape, generator=rng)).clamp(0, 1),
    "mirrored, shifted, noise of 0.02": lambda x, rng: DISGUISES["noise of 0.02"](x.flip(3).roll((1, 1), (2, 3)), rng),
    "darker by a tenth": lambda x, _: 0.9 * x,
}
SURE = ("as they are", "mirrored", "shifted by 2 pixels", "noise of 0.02")  # what the audit must find


def copies(quick: bool) -> Iterator[Figure]:
    """Audit honest releases of drawn splits, then the same with copies of private images among what is released."""
    pixels, labels = cifar10("train")
    public = Images(pixels[-1000:], labels[-1000:], torch.arange(1000))
    find, _ = searches(2, Judge(train_judge(public, 10, generator(0))))
    if quick:
        find = {name: search for name, search in find.items() if name != "lpips"}
    splits = 12 if quick else 100
    honest = [audit(drawn(pixels, seed), find, LEVEL) for seed in range(splits)]
    for name, accused in (("of copies", [bool(found.copied.any()) for found in honest]),
                          ("of being near", [found.near for found in honest])):
        # Half of the level each; as many as chance makes of that in 39 of 40 benchmarks.
        most = int(binom.ppf(0.975, splits, LEVEL / 2))
        yield Figure(f"{splits} honest releases of {COUNT}", f"accused {name}", sum(accused), f"<= {most}",
                     sum(accused) <= most)
    for how, disguise in DISGUISES.items():
        found = [planted(pixels, seed, disguise, find) for seed in range(1 if quick else 10)]
        share = sum(right for right, _ in found) / PLANTED / len(found)
        wrong = sum(wrong for _, wrong in found)
        case = f"{PLANTED} copies among {COUNT}, {how}"
        yield at_least(case, "share found", share, 0.95) if how in SURE else Figure(case, "share found", share)
        yield Figure(case, "others named", wrong)


def drawn(pixels: Tensor, seed: int) -> Parts:
    """Draw private, held-out, public and released images that have nothing to do with each other."""
    order = torch.randperm(len(pixels) - 1000, generator=generator(seed))[: 4 * COUNT]
    private, held, public, released = pixels[order].split(COUNT)
    return Parts(released, private, held, public)


def planted(pixels: Tensor, seed: int, disguise: Callable[[Tensor, torch.Generator], Tensor],
            find: Mapping[str, Search]) -> tuple[int, int]:
    """Release disguised copies of the first private images; return how many are found, and how many others."""
    parts = drawn(pixels, seed)
    copied = disguise(parts.private[:PLANTED], generator(seed))
    released = torch.cat([copied, parts.released[PLANTED:]])
    found: Audit = audit(Parts(released, parts.private, parts.held, parts.public), find, LEVEL)
    named = found.copied.any(0)
    return int(named[:PLANTED].sum()), int(named[PLANTED:].sum())
