"""The attack that looks at nothing: the floor of every score."""

from dataclasses import dataclass

import torch

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.calibrate import BlindGuess, Guesses, Metric
from ppbench.perceptual import Net
from ppbench.view import View


@dataclass(frozen=True)
class Blind(Attack):
    """Guess without looking at the release: the best of means, random and optimised public images (the floor).

    Attributes:
        metric: the score for which the guess is the best there is: `ssim`, `lpips` or `identification`.
        trunk: the LPIPS trunk: `squeeze`, `alex` or `vgg`.
    """

    requires = frozenset({"public"})
    uses = frozenset({"labels"})
    default_threat = "ciphertext-only"
    role = "floor"
    metric: Metric = "ssim"
    trunk: Net = "squeeze"

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the guesses, which depend on the public images alone."""
        return {"guesses": BlindGuess(self.metric, self.trunk)}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the guess for every target, of its class where the view holds labels."""
        labels = view.labels if "labels" in view.granted else None
        guess = Guesses.from_tensors(priors["guesses"]).knowing(labels)
        images = guess.for_targets(labels, view.n_targets, view.public)
        return Reconstruction(images, note=f"blind guess: {guess.method}")
