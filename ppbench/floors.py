"""What a blind guess reaches, by the same protocol as an attack: once for all cells with the same targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppbench.calibrate import Guesses, random_floor
from ppbench.codec import Tensors
from ppbench.matching import Order
from ppbench.quality import METRICS
from ppbench.scorers import Yardstick, mean_of, scorers

PERFECT: dict[str, float] = {"ssim": 1.0, "lpips": 0.0, "identification": 1.0}
LOWER = {"lpips", *(name for name, metric in METRICS.items() if metric.better == "lower")}
"""Columns of which less is better."""


@dataclass
class Floors:
    """The scores of blind guesses.

    Attributes:
        scores: column -> `[n_targets]`.
        methods: column -> what the guess was.
    """

    scores: Tensors = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)

    def put(self, column: str, scores: Tensor, method: str) -> None:
        """Take a guess in, if it is better than what there is."""
        if column not in self.scores or _better(column, scores, self.scores[column]):
            self.scores[column], self.methods[column] = scores, method


def floors(yardstick: Yardstick, order: Order, guesses: Mapping[str, Guesses], labels_known: bool,
           rng: torch.Generator) -> Floors:
    """Score the best blind guesses on the targets.

    For an unordered outcome the floor is the better of two: the best blind guess, which can be returned in any
    order, and as many public images, both assigned as the estimates are.

    Args:
        yardstick: the targets, and what is measured.
        order: how the attack's estimates stand to the targets.
        guesses: metric -> best blind guesses.
        labels_known: the adversary knows the targets' labels.
        rng: draws public images.
    """
    private, public = yardstick.private, yardstick.images.public
    labels = yardstick.labels if labels_known else None
    measured = scorers(yardstick, order.aligned).by_column
    found = Floors()
    for metric, best in guesses.items():
        if metric in measured:
            guess = best.knowing(labels)
            images = order.matched(guess.for_targets(labels, yardstick.targets, public), private)
            found.put(metric, measured[metric](images).double(), guess.method)
            for name in measured.keys() & {"verification", *METRICS}:  # a blind guess may look like somebody
                found.put(name, measured[name](images).double(), guess.method)
    # What the judge sees in a blind guess says little: its floor is public images, of the label where it is known.
    drawn = [name for name in (*PERFECT, "identification_feature", "recognition", "verification", *METRICS)
             if name in measured and (name not in found.scores or name in ("verification", *METRICS)
                                      or not order.aligned)]
    for name, scores in random_floor(public, labels, private, {name: measured[name] for name in drawn}, order,
                                     rng).items():
        found.put(name, scores, f"random public images{'' if order.aligned else ', assigned'}")
    return found


def _better(column: str, one: Tensor, other: Tensor) -> bool:
    better = mean_of(column, one) > mean_of(column, other)
    return better != (column in LOWER)
