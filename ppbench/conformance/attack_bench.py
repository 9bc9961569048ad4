"""An attack on the bench: views to run it on, its priors learnt once, what it did remembered."""

import json
from dataclasses import dataclass, replace
from functools import cached_property

from ppbench import codec
from ppbench.attack import Attack, CraftingAttack, Prior, TrainingAttack
from ppbench.codec import Tensors
from ppbench.conformance.scenes import Scene, view_of
from ppbench.conformance.subject import Subject
from ppbench.conformance.trial import ONE, OTHER, Trial, attempt
from ppbench.defense import Release
from ppbench.errors import NotApplicable
from ppbench.flow import StageFailed
from ppbench.model import Model
from ppbench.plan import AttackPlan
from ppbench.stages.attacking import describe_prior
from ppbench.threat import CAPABILITIES, NAMED, ThreatModel
from ppbench.view import Sealed, View

MAIN = Scene("colour images of 32 x 32 pixels")
PAIRS = 4


@dataclass(frozen=True)
class AttackBench:
    """What the checks of an attack share.

    Attributes:
        subject: the attack.
    """

    subject: Subject

    @property
    def attack(self) -> Attack:
        """The attack itself."""
        attack: Attack = self.subject.component
        return attack

    @property
    def accuses(self) -> bool:
        """Say whether it tells members from others."""
        return "candidates" in self.attack.requires

    @cached_property
    def threat(self) -> ThreatModel:
        """The attack's own threat model; where that does not serve, the one that grants everything."""
        found = NAMED.get(self.attack.default_threat)
        known = self.attack.requires & CAPABILITIES
        return replace(found if found and known <= found.grants else NAMED["full-knowledge"], pairs=PAIRS)

    def view(self, scene: Scene = MAIN) -> View:
        """Return what the attack's threat model grants in a scene, read afresh.

        Raises:
            StageFailed: the attack's own part in it failed.
            NotApplicable: the attack says so.
        """
        plan = AttackPlan((self.subject.ref,), frozenset(self.attack.requires), isinstance(self.attack, TrainingAttack),
                          asks="oracle" in self.attack.requires | self.attack.uses,
                          crafts=isinstance(self.attack, CraftingAttack))
        try:
            return View(codec.load(Sealed, view_of(scene, plan, self.threat)))
        except StageFailed as failure:
            if failure.status == "not-applicable":
                raise NotApplicable(failure.reason) from None
            raise

    def trained_on(self) -> tuple[Release, Model]:
        """Return the release and the starting weights that whoever trains the victim holds."""
        whole = replace(NAMED["full-knowledge"], pairs=PAIRS)
        plan = AttackPlan((self.subject.ref,), frozenset(), trains=False)
        view = View(codec.load(Sealed, view_of(MAIN, plan, whole)))
        return view.release, view.model

    def before(self) -> View:
        """Return what a server knows before it hands out a model."""
        threat = replace(self.threat, grants=self.threat.grants - {"gradients", "pairs", "oracle"})
        plan = AttackPlan((self.subject.ref,), frozenset(), trains=False)
        return View(codec.load(Sealed, view_of(MAIN, plan, threat)))

    def priors(self, view: View) -> dict[str, Tensors]:
        """Let the attack learn what it wants, the same never twice."""
        return {name: self._learnt(prior, view) for name, prior in self.attack.priors(view).items()}

    def run(self, view: View, shared: int = ONE) -> Trial:
        """Run the attack on a view, and watch."""
        priors = self.priors(view)
        return attempt(lambda rng: self.attack.run(view, priors, rng), shared)

    @cached_property
    def main(self) -> tuple[View, Trial]:
        """The first view, after the attack ran on it, and what became of that."""
        view = self.view()
        return view, self.run(view)

    @cached_property
    def again(self) -> Trial:
        """The same run while the global generators are seeded differently."""
        return self.run(self.view(), OTHER)

    @cached_property
    def _known(self) -> dict[str, Tensors]:
        return {}

    def _learnt(self, prior: Prior, view: View) -> Tensors:
        key = json.dumps(describe_prior(prior, view), sort_keys=True)
        if key not in self._known:
            self._known[key] = attempt(lambda rng: prior.train(prior.seen(view), rng)).value
        return self._known[key]
