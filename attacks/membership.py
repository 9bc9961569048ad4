"""Membership inference: whose images was the victim trained with?"""

from dataclasses import dataclass
from typing import Literal

import torch

from ppbench.attack import Attack, Membership, Prior, Priors
from ppbench.attacks._likelihoods import Shadows, lira, rmia
from ppbench.attacks._shadows import ShadowVictims
from ppbench.attacks._sureness import sure_of_victim
from ppbench.bounds import above_zero, between
from ppbench.view import View


@dataclass(frozen=True)
class MembershipInference(Attack):
    """Tell who trained the victim by how much surer it is of an image than networks trained without it (LiRA, RMIA).

    Shadows repeat all that was done, defense and training, with images of the adversary's choice and keys of its own;
    candidates are put to the victim as its clients put images to it, several times where each time they look different.

    Sources: LiRA, Carlini et al. 2022 (arXiv 2112.03570); RMIA, Zarifzadeh et al. 2024 (arXiv 2312.03262); `loss` is
    the threshold of Yeom et al. 2018 (arXiv 1709.01604), which needs no shadows and finds nobody for certain.

    Attributes:
        method: `lira`, `rmia` or `loss`.
        online: shadows are trained with half of the candidates each; otherwise (offline) with public images alone.
        shadows: their number, even.
        gamma: RMIA: how much more likely a candidate must be than another image to count.
        share: RMIA offline: the paper's a, by which the shadows' mean is moved to what it were with the candidate.
    """

    requires = frozenset({"public", "algorithm", "model", "candidates"})
    default_threat = "membership-inference"
    method: Literal["lira", "rmia", "loss"] = "lira"
    online: bool = True
    shadows: int = 16
    gamma: float = 2.0
    share: float = 0.3

    def __post_init__(self) -> None:
        if self.shadows < 2 or self.shadows % 2:
            raise ValueError(f"shadows is {self.shadows}; it must be even, at least 2, as they come in pairs")
        above_zero(self, "gamma")
        between(self, 0, 1, "share")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the shadows, which all methods share."""
        return {} if self.method == "loss" else {"shadows": ShadowVictims(self.shadows, self.online)}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Membership:
        """Score every candidate."""
        candidates = view.candidates
        sure = sure_of_victim(view, candidates.images, candidates.sent, rng)
        if self.method == "loss":
            return Membership(sure.mean(1), "no shadows: one threshold for all")
        told = priors["shadows"]
        shadows = Shadows(told["sure"], told["inside"])
        note = f"{self.shadows} shadows, {'online' if self.online else 'offline'}"
        if self.method == "lira":
            return Membership(lira(sure, shadows, self.online), note)
        out = ~told["public_inside"]
        usual = (told["public"][..., 0].sigmoid() * out).sum(0) / out.sum(0).clamp(min=1)
        others = sure_of_victim(view, view.public, candidates.public, rng)
        probable = Shadows(shadows.sure.sigmoid(), shadows.inside)
        return Membership(rmia(sure[:, 0].sigmoid(), probable, others[:, 0].sigmoid(), usual, self.gamma,
                               None if self.online else self.share), note)
