"""Floors: what the best guess scores that reads neither a release nor a private image.

Which guess is best is decided for each metric on a public hold-out, with and without knowledge of the labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ppbench.attack import Prior
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.errors import NotApplicable, UserError
from ppbench.matching import Order
from ppbench.metrics import identification, ssim
from ppbench.optimised import group_means, optimise_lpips, optimise_ssim
from ppbench.perceptual import Lpips, Net, Trunk, find_trunk
from ppbench.seeding import generator, spawn
from ppbench.view import Capability, View

Metric = Literal["ssim", "lpips", "identification"]
DRAWS = 20

_HOLD_OUT = 4  # every fourth public image decides, the others are fitted
# images that are fitted and that decide, where one costs as much as 32 x 32 pixels (lpips: 64 x 64)
_MOST: dict[Metric, tuple[int, int]] = {"ssim": (4000, 500), "lpips": (500, 96), "identification": (4000, 1000)}
_FEWEST = 64


@dataclass(frozen=True)
class Guess:
    """One blind guess.

    Attributes:
        method: how it was made; `class-` in front where it uses the labels.
        images: `[1, C, H, W]`, or with labels `[classes, C, H, W]`; `[0, C, H, W]` for random public images.
        seed: decides which public images a random guess takes.
    """

    method: str
    images: Tensor
    seed: int

    def for_targets(self, labels: Tensor | None, count: int, public: Images) -> Tensor:
        """Return the guess for `count` targets, `[count, C, H, W]`: the same at every call.

        Args:
            labels: `[count]` int64, the targets' labels; only a guess that uses them needs them.
            count: number of targets.
            public: the images it was fitted on.
        """
        if len(self.images) == 1:
            return self.images.expand(count, -1, -1, -1)
        known = labels if self.method.startswith("class-") else None
        if len(self.images) == 0:
            return draw_like(public, known, count, generator(self.seed)).pixels
        if known is None:
            raise UserError(f"the guess {self.method!r} needs the targets' labels: use the plain one")
        return self.images[known]


@dataclass(frozen=True)
class Guesses:
    """The best blind guess of one metric at two levels of knowledge.

    Attributes:
        plain: for whoever does not know the targets' labels.
        labelled: for whoever does.
    """

    plain: Guess
    labelled: Guess

    def knowing(self, labels: Tensor | None) -> Guess:
        """Return the guess of an adversary who knows these labels, or none."""
        return self.plain if labels is None else self.labelled

    def tensors(self) -> Tensors:
        """Encode as tensors alone, as a prior is stored."""
        return {"seed": torch.tensor([self.plain.seed, self.labelled.seed]),
                f"plain/{self.plain.method}": self.plain.images,
                f"labelled/{self.labelled.method}": self.labelled.images}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Guesses":
        """Decode what `tensors` made."""
        named = {key.partition("/")[0]: (key.partition("/")[2], value) for key, value in tensors.items()}
        seeds = tensors["seed"].tolist()
        return Guesses(Guess(*named["plain"], seeds[0]), Guess(*named["labelled"], seeds[1]))


@dataclass(frozen=True)
class BlindGuess(Prior):
    """The best blind guesses for a metric, learnt from public images: one for every cell of a data set.

    Attributes:
        metric: which score is to be made as good as it gets.
        trunk: the LPIPS trunk.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({"public"})
    metric: Metric = "ssim"
    trunk: Net = "squeeze"

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Fit the guesses; `Guesses.from_tensors` reads them.

        Raises:
            NotApplicable: the metric is LPIPS and its weights are not there.
        """
        lpips = None
        if self.metric == "lpips":
            found = find_trunk(self.trunk)
            if not isinstance(found, Trunk):
                raise NotApplicable(found)
            lpips = Lpips(found)
        return fit_guesses(self.metric, view.public, view.classes, rng, lpips).tensors()


def fit_guesses(metric: Metric, public: Images, classes: int, rng: torch.Generator,
                lpips: Lpips | None = None) -> Guesses:
    """Make every candidate on three quarters of the public images and keep the best on the rest.

    Candidates: public mean, class mean, a random public image (of the class), one image (one a class) optimised for
    the metric. For identification the mean is the optimised one: it has the least mean squared distance to all.

    Args:
        metric: what the guesses are to be good at.
        public: the adversary's images.
        classes: number of classes.
        rng: splits, draws and seeds.
        lpips: needed for `lpips`.

    Returns:
        The best guesses without and with labels.

    Raises:
        UserError: there are no public images, images too small for SSIM, or `lpips` is missing.
    """
    if not len(public):
        raise UserError("a blind guess needs public images: set public to at least 1")
    if metric == "lpips" and lpips is None:
        raise UserError("the blind guess for LPIPS needs its weights: run `ppbench weights fetch`")
    cost = _cost(metric, public.shape, lpips)
    fitted, deciding = (max(_FEWEST, round(most / cost)) for most in _MOST[metric])
    fit, held = _hold_out(public, fitted, deciding, rng)
    banks = _banks(metric, fit, held, classes, lpips, rng)
    plain = [Guess(name, bank[-1:], 0) for name, bank in banks.items()]
    plain.append(Guess("random", fit.pixels[:0], _seed(rng)))
    labelled = [Guess(f"class-{name}", bank[:-1], 0) for name, bank in banks.items()]
    labelled.append(Guess("class-random", fit.pixels[:0], _seed(rng)))
    best = _choose(metric, plain, fit, held, lpips)
    return Guesses(best, _choose(metric, [best, *labelled], fit, held, lpips))


def draw_like(public: Images, labels: Tensor | None, count: int, rng: torch.Generator) -> Images:
    """Draw `count` public images, image i of class `labels[i]` where labels are known.

    None is drawn twice before all of its class were; a class without public images is served from all of them.
    """
    shuffled = public[torch.randperm(len(public), generator=rng)]
    if labels is None:
        return shuffled[torch.arange(count) % len(public)]
    classes = 1 + int(torch.cat([labels, shuffled.labels]).max())
    order = shuffled.labels.argsort(stable=True)
    sizes = torch.bincount(shuffled.labels, minlength=classes)
    turn = _rank_in_class(labels, classes)
    rows = order[(sizes.cumsum(0) - sizes)[labels].clamp(max=len(order) - 1) + turn % sizes[labels].clamp(min=1)]
    return shuffled[torch.where(sizes[labels] > 0, rows, torch.arange(count) % len(public))]


def random_floor(public: Images, labels: Tensor | None, targets: Tensor,
                 scores: Mapping[str, Callable[[Tensor], Tensor]], order: Order, rng: torch.Generator,
                 draws: int = DRAWS) -> dict[str, Tensor]:
    """Score as many public images as there are targets by the protocol of an attack.

    Each draw has the targets' class mix (in every batch of `order.within`) and is matched to them as estimates are.

    Args:
        public: the adversary's images.
        labels: `[N]`, the targets' labels if the adversary knows them.
        targets: `[N, C, H, W]`, the private images; only the scorer calls this.
        scores: name -> function of aligned estimates `[N, C, H, W]` that returns `[N]`.
        order: how the attack's estimates stand to the targets.
        rng: draws the images.
        draws: how many to average over.

    Returns:
        name -> `[N]`, each target's score averaged over the draws.
    """
    sums: dict[str, Tensor] = {name: torch.zeros(len(targets), dtype=torch.float64) for name in scores}
    for _ in range(draws if scores else 0):
        matched = order.matched(draw_like(public, labels, len(targets), rng).pixels, targets)
        for name, score in scores.items():
            sums[name] += score(matched).detach().double().cpu()
    return {name: total / draws for name, total in sums.items()}


def _banks(metric: Metric, fit: Images, held: Images, classes: int, lpips: Lpips | None,
           rng: torch.Generator) -> dict[str, Tensor]:
    """Make the constant candidates: name -> one image a class and, last, one for all."""
    mean = group_means(fit, classes)
    if metric == "ssim":
        mirrored = (mean + mean.flip(3)) / 2
        pair = [Guess("class-mean", mean[:-1], 0), Guess("class-mirrored-mean", mirrored[:-1], 0)]
        # Photographs are as good mirrored, letters are not: the hold-out knows.
        mirror = _choose(metric, pair, fit, held, None) is pair[1]
        return {"mean": mean, "mirrored-mean": mirrored,
                "optimised": optimise_ssim(fit, classes, mirror, spawn(rng))}
    if metric == "lpips":
        assert lpips is not None
        return {"mean": mean, "optimised": optimise_lpips(fit, classes, lpips)}
    return {"mean": mean}


def _cost(metric: Metric, shape: Shape, lpips: Lpips | None) -> float:
    """Return what scoring one image costs, in units of the size for which `_MOST` holds."""
    if metric == "lpips":
        assert lpips is not None
        return lpips.cost(shape)
    return shape[1] * shape[2] / 32**2


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=rng))


def _choose(metric: Metric, candidates: list[Guess], fit: Images, held: Images, lpips: Lpips | None) -> Guess:
    """Return the candidate of the best mean score on the hold-out (the first of those that tie)."""
    values = [_value(metric, guess.for_targets(held.labels, len(held), fit), held.pixels, lpips)
              for guess in candidates]
    return candidates[max(range(len(values)), key=values.__getitem__)]


@torch.no_grad()
def _value(metric: Metric, guesses: Tensor, originals: Tensor, lpips: Lpips | None) -> float:
    """Return how good guesses are, higher is better."""
    if metric == "ssim":
        return float(ssim(guesses, originals, torch.float32).mean())
    if metric == "lpips":
        assert lpips is not None
        return -float(lpips(guesses, originals).mean())
    return float(identification(guesses, originals).mean())


def _hold_out(public: Images, fitted: int, deciding: int, rng: torch.Generator) -> tuple[Images, Images]:
    """Draw images to fit and images to decide on: disjoint, save where there is but one."""
    order = torch.randperm(len(public), generator=rng)
    if len(public) == 1:
        return public, public
    cut = min(deciding, max(1, len(public) // _HOLD_OUT))
    return public[order[cut:][:fitted]], public[order[:cut]]


def _rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """Return how many earlier entries have the same label."""
    order = labels.argsort(stable=True)
    sizes = torch.bincount(labels, minlength=classes)
    first = (sizes.cumsum(0) - sizes)[labels[order]]
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - first
    return rank
