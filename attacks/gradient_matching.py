"""Gradient matching: find the images whose gradient is the one that a federated client sent.

Source: Zhu et al. 2019, "Deep leakage from gradients" (arXiv 1906.08935); Geiping et al. 2020, "Inverting gradients -
how easy is it to break privacy in federated learning?" (arXiv 2003.14053); `_gradient_settings` names the others.
"""

from dataclasses import dataclass, fields, replace
from typing import get_args

import torch

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._gan import Generator
from ppbench.attacks._gradient_match import Scene, recovered, solved
from ppbench.attacks._gradient_settings import (
    PRESETS,
    Init,
    Labels,
    Objective,
    Optimiser,
    Preset,
    Schedule,
    Settings,
    Sign,
    Where,
)
from ppbench.attacks._rehearsal import rehearse
from ppbench.attacks._released import like_released
from ppbench.bounds import above_zero, at_least, between
from ppbench.errors import NotApplicable
from ppbench.updates import plain_attention, prepare
from ppbench.view import View


@dataclass(frozen=True)
class GradientMatching(Attack):
    """Invert federated gradients: closed forms first, the rest by optimisation; presets name the published attacks.

    Recovers the *released* images. With more than one image a gradient, their order within a batch is unknown.

    A preset gives all that is minimised and how; each parameter after it replaces one of its settings (None = as the
    preset says).

    Attributes:
        preset: `ppbench` (ours), or a published attack.
        steps: of the optimiser.
        restarts: independent starts for every update, tried as one batch; 0 = eight of trained networks, one of others
            and where spans tell it.
        cull: share of the steps after which only the best start goes on; before, the worse halves are dropped.
        objective: `cosine` distance of the gradients, or their relative squared distance (`euclidean`).
        optimiser: `adam`, `l-bfgs`, or whichever a rehearsal shows to be better (`rehearsed`).
        learning_rate: of Adam, in units of the pixel range [0, 1].
        sign: of the gradient that Adam is given: `hard`, `soft` or `none`.
        schedule: of the learning rate: `constant`, `steps` or `cosine`.
        init: starts: `grey` or the mean of protected `public` images with slight noise, `noise`, `tiles` of noise;
            restarts from `public` are drawn with the spectrum of public images.
        spectrum: whether Adam steps in the spectrum of public images: of `trained` networks, `always`, `never`, or of
            all trained ones and whichever others a rehearsal shows (`rehearsed`).
        labels: `inferred` in closed form, or `optimised`; where the threat model grants them, neither.
        boxed: pixels stay in [0, 1] while Adam runs.
        tv: weight of the total variation.
        lossy_tv: weight of the total variation, beside, where the defense takes part of the gradients away.
        relative: the total variation weighs in proportion to what is left between the gradients.
        statistics: weight of the distance from the running statistics of batch normalisation.
        features: weight of the distance from the last layer's inputs, as its gradients tell them.
        told_errors: of single images, the logits' errors are what the last bias's gradient is.
        group: weight of the distance from the mean of all restarts.
        generator: share of the steps that are taken in the codes and features of a generator of public images, before
            the others; for defenses that leave images in their shape, without a key.
        generator_steps: of its training, at 32 x 32 pixels.
        closed_form: solve for what algebra gives, first.
        fast: compute in bfloat16 but for the last fifth of the steps, on GPUs and CPUs that have it.
        spans: steps that only look for images whose activations lie where convolutions' gradients say, before the
            others: of single images.
        rehearsals: public images on which the attack is tried first, to choose what is left open above and how much
            of an estimate is believed; 0 = none.
    """

    requires = frozenset({"model", "gradients", "public", "algorithm"})
    uses = frozenset({"labels"})
    default_threat = "federated-server"
    ceiling = 0.9
    preset: Preset = "ppbench"
    steps: int | None = None
    restarts: int | None = None
    cull: float | None = None
    objective: Objective | None = None
    optimiser: Optimiser | None = None
    learning_rate: float | None = None
    sign: Sign | None = None
    schedule: Schedule | None = None
    init: Init | None = None
    spectrum: Where | None = None
    labels: Labels | None = None
    boxed: bool | None = None
    tv: float | None = None
    lossy_tv: float | None = None
    relative: bool | None = None
    statistics: float | None = None
    features: float | None = None
    told_errors: bool | None = None
    group: float | None = None
    generator: float | None = None
    generator_steps: int = Generator.steps
    closed_form: bool | None = None
    fast: bool | None = None
    spans: int | None = None
    rehearsals: int | None = None

    def __post_init__(self) -> None:
        choices = {"preset": Preset, "objective": Objective, "optimiser": Optimiser, "sign": Sign,
                   "schedule": Schedule, "init": Init, "spectrum": Where, "labels": Labels}
        for name, kind in choices.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed and not (value is None and name != "preset"):
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        how = self.settings()
        between(how, 1, MOST_STEPS, "steps")
        at_least(how, 0, "restarts", "tv", "lossy_tv", "statistics", "features", "group", "spans", "rehearsals")
        above_zero(how, "learning_rate", "cull")
        between(self, 1, MOST_STEPS, "generator_steps")
        if not 0 <= how.generator <= 1:
            raise ValueError(f"generator is {how.generator}; it must lie between 0 and 1")

    def settings(self) -> Settings:
        """Return the preset's settings, with those that the parameters replace."""
        given = {field.name: getattr(self, field.name) for field in fields(self)
                 if field.name not in ("preset", "generator_steps")}
        return replace(PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None})

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the generator, where one is searched."""
        return {"generator": self._prior} if self.settings().generator and _plain(view) else {}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Reconstruct the released images of every batch of targets.

        Raises:
            NotApplicable: the update or its defense, or the network, is not such as can be inverted; says why.
        """
        with plain_attention():
            return self._run(view, priors, rng)

    def _run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        update, how = view.update, self.settings()
        if not all(value.sum(dtype=torch.float64).isfinite() for value in update.values.values()):
            raise NotApplicable("the update holds values that are not finite: lower the client's learning rate")
        if how.generator and not _plain(view):
            raise NotApplicable("a generator draws images like the public ones, and the released ones are not: set "
                                "generator = 0")
        net = view.model.build()
        prepare(net, update.bn_train)
        drawing = self._prior.load(view, priors["generator"]).generator if how.generator else None
        scene, way = Scene(view, net, like_released(view, rng), rng, drawing), None
        labels = view.labels if "labels" in view.granted else None
        batch, found = update.batch * update.clients, []
        for size, rows in _equal_batches(view.n_targets, batch):
            problem = scene.problem(update, size, rows, labels)
            algebra = solved(problem, how, view.released_shape)
            if way is None and (algebra is None or len(algebra.open)):
                way = rehearse(how, scene)
            found.append(recovered(problem, way.settings if way else how, scene, algebra,
                                   way.shrinkage if way else None))
        single = batch == 1
        notes = [*(one.note for one in found), way.note if way else "", *scene.doubts(update, labels),
                 "labels " + ("given" if labels is not None else how.labels)]
        return Reconstruction(torch.cat([one.images.flatten(0, 1).clamp(0, 1) for one in found]), aligned=single,
                              of="released", within=None if single else batch,
                              note="; ".join(filter(None, dict.fromkeys(notes))),
                              objective=torch.cat([one.objective for one in found], 1))


    @property
    def _prior(self) -> Generator:
        return Generator(steps=self.generator_steps)


def _plain(view: View) -> bool:
    """Say whether released images may be such as public ones are: of their shape, and without a key."""
    return view.released_shape == view.image_shape and view.algorithm.key_scope is None


def _equal_batches(count: int, batch: int) -> list[tuple[int, slice]]:
    """Group `count` targets in batches as (size, rows of the update): the full ones, and a smaller last one."""
    full, rest = divmod(count, batch)
    return [(size, rows) for size, rows in ((batch, slice(0, full)), (rest, slice(full, None)))
            if size and (rows.stop is None or rows.stop)]
