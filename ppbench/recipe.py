"""How a victim is built and trained: the suite's `[victim]` table."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

PRETRAINED, RANDOM = "pretrained", "random"  # weights that no file holds


@dataclass(frozen=True)
class Recipe:
    """How a victim is built and trained: the suite's `[victim]` table, or a defense's own `victim = {...}`.

    With one client the release is learnt from centrally. With more, every client holds a part of the private images
    and FedAvg is run (McMahan et al. 2017, arXiv 1602.05629): in each round every client trains the global model on
    its own protected images, with an optimiser of its own, and the server averages the weights by number of images.

    Attributes:
        model: `timm:NAME`, `torchvision:NAME` or `package.module:function`.
        kwargs: the factory's keyword arguments; image size, channels and classes are filled in.
        weights: file of weights to start from (safetensors, or a state_dict that loads with `weights_only=True`);
            "pretrained" = those that timm or torchvision publish; "random" = fresh ones that are published, as a
            federation's server hands them out; "" = fresh ones that nobody else knows.
        epochs: passes over the images.
        steps: instead of epochs, about so many optimiser steps, in whole epochs: the same budget for few images and
            for many; 0 = by epochs.
        batch: images a step.
        optimizer: `adamw`, or `sgd` with momentum 0.9.
        learning_rate: the peak, reached after a tenth of all steps, then along a cosine to 0.
        weight_decay: the optimiser's.
        label_smoothing: share of a label that is spread over all classes.
        augment: what a client does to its images anew in every epoch, before it protects them: `flip` (left-right, one
            time in two), or `crop-flip` (the same, after a shift by up to an eighth of the side, the edge repeated).
        protect_anew: the client protects its images anew in every epoch (fresh shuffles, fresh mixtures; keys of a
            client or of all stay); follows from `augment`. Otherwise one release is learnt from again and again.
        amp: compute in bfloat16 where torch's autocast does, on GPUs and CPUs that have it (several times faster).
        channels_last: store feature maps channels last (faster for convolutions).
        clients: how many hold the private images.
        local_epochs: passes of a client between two averages.
        skew: alpha of a Dirichlet distribution by which every class is dealt to the clients (Hsu et al. 2019, arXiv
            1909.06335): small = each client sees few classes; None = at random, equal shares.
    """

    model: str = "ppbench.nets:convnet"
    kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    epochs: int = 20
    steps: int = 0
    batch: int = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 6e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    augment: Literal["none", "flip", "crop-flip"] = "none"
    protect_anew: bool = False
    amp: bool = False
    channels_last: bool = False
    clients: int = 1
    local_epochs: int = 1
    skew: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "clients", "local_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, choices in (("optimizer", ("adamw", "sgd")), ("augment", ("none", "flip", "crop-flip"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if self.skew is not None and not 0 < self.skew < math.inf:
            raise ValueError(f"skew is {self.skew}; it must be positive")
        if self.clients == 1 and (self.local_epochs, self.skew) != (1, None):
            raise ValueError("local_epochs and skew speak of clients: set clients to at least 2, or leave them out")
        if self.steps < 0 or (self.steps and self.clients > 1):
            raise ValueError(f"steps is {self.steps}; it must be at least 0, and 0 in a federation: give epochs there")
        if self.epochs % self.local_epochs:
            raise ValueError(f"epochs ({self.epochs}) must be a multiple of local_epochs ({self.local_epochs})")

    @property
    def rounds(self) -> int:
        """Count the averages of a federated training."""
        return self.epochs // self.local_epochs

    def passes(self, count: int) -> int:
        """Count the epochs over `count` images."""
        if not self.steps:
            return self.epochs
        batches = max(1, round(count / self.batch))
        return max(1, round(self.steps / batches))

    def until(self, end: str | int) -> int | None:
        """Turn a threat model's round into where to stop; None = after the last one.

        Raises:
            ValueError: there are not so many rounds.
        """
        if not isinstance(end, int):
            return None
        what, last = ("rounds", self.rounds) if self.clients > 1 else ("epochs", self.epochs)
        if end > last or self.steps:
            raise ValueError(f"round is {end}, but the victim is trained for {last} {what}"
                             + (", counted in steps" if self.steps else "") + f": name a round up to {last}")
        return None if end == last else end

    @property
    def renews(self) -> bool:
        """Say whether clients protect their images anew in every epoch."""
        return self.protect_anew or self.augment != "none"

    @property
    def given(self) -> bool:
        """Say whether the starting weights are somebody's, not drawn."""
        return self.weights not in ("", RANDOM)

    def architecture(self) -> dict[str, Any]:
        """Return what the starting weights are a function of."""
        return {"model": self.model, "kwargs": self.kwargs, "weights": self.weights}
