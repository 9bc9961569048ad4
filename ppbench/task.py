"""What a victim learns to do: a loss, a score and what its outputs must look like; the training loop knows no more."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class Task(ABC):
    """A task of the victim's.

    Attributes:
        name: as it stands in a suite.
        measure: what `score` is, as the field calls it.
    """

    name: str
    measure: str

    @abstractmethod
    def loss(self, outputs: Tensor, goals: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    @abstractmethod
    def score(self, outputs: Tensor, goals: Tensor) -> float:
        """Return how well a test set is served, in [0, 1], 1 = perfectly."""

    @abstractmethod
    def misfit(self, outputs: Tensor, goals: Tensor) -> str:
        """Say what is wrong with outputs for these goals; "" = nothing."""


class Classification(Task):
    """One class an image.

    Goals are labels `[N]` int64 (smoothed where asked), or shares of classes `[N, <= classes]` that sum to 1.
    """

    name, measure = "classification", "accuracy"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, goals: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the cross-entropy with labels or shares, at a temperature (Hinton et al. 2015, arXiv 1503.02531).

        Classes beyond the end of the shares have none. Times temperature squared, so that gradients keep their size.
        """
        if goals.ndim == 2:
            goals = F.pad(goals, (0, outputs.shape[1] - goals.shape[1]))
        smoothing = self.label_smoothing if goals.ndim == 1 else 0.0  # shares are as soft as they should be
        loss = F.cross_entropy(outputs / temperature, goals, label_smoothing=smoothing)
        return temperature**2 * loss

    def score(self, outputs: Tensor, goals: Tensor) -> float:
        """Return the share of images whose highest output is their label's."""
        return (outputs.argmax(1) == goals).double().mean().item()

    def misfit(self, outputs: Tensor, goals: Tensor) -> str:
        """Ask for one logit a class."""
        top = int(goals.max()) if goals.ndim == 1 else goals.shape[1] - 1
        if outputs.ndim == 2 and top < outputs.shape[1]:
            return ""
        return (f"gives logits of shape {list(outputs.shape[1:])}, but the labels go up to {top}: give it one logit a "
                "class in [victim]")


class MultiLabel(Task):
    """Any number of labels an image: goals are `[N, labels]` in {0, 1}."""

    name, measure = "multi-label", "mean average precision"

    def loss(self, outputs: Tensor, goals: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the binary cross-entropy, averaged over labels."""
        return temperature**2 * F.binary_cross_entropy_with_logits(outputs / temperature, goals.to(outputs.dtype))

    def score(self, outputs: Tensor, goals: Tensor) -> float:
        """Return the average precision, averaged over the labels that some image has.

        Precision at each true image, in the order of falling outputs; equal outputs count as one step.
        """
        found = [_average_precision(outputs[:, i], goals[:, i] > 0) for i in range(goals.shape[1])
                 if (goals[:, i] > 0).any()]
        return float(torch.tensor(found, dtype=torch.float64).mean()) if found else 0.0

    def misfit(self, outputs: Tensor, goals: Tensor) -> str:
        """Ask for one logit a label."""
        if outputs.shape == goals.shape[:1] + goals.shape[1:] or outputs.shape[1:] == goals.shape[1:]:
            return ""
        return (f"gives outputs of shape {list(outputs.shape[1:])} for {list(goals.shape[1:])} labels: give it one "
                "logit a label in [victim]")


def _average_precision(outputs: Tensor, true: Tensor) -> float:
    order = outputs.argsort(descending=True)
    values, hits = outputs[order].double(), true[order].double().cumsum(0)
    last = torch.ones_like(true)
    last[:-1] = values[1:] != values[:-1]  # ties are one threshold
    hits, ranks = hits[last], torch.arange(1, len(outputs) + 1)[last].double()
    gained = hits.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return float((gained * hits / ranks).sum() / true.sum())
