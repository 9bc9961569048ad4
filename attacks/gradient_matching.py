"""Gradient matching: find the images whose gradient is the one that a federated client sent.

Source: Zhu et al. 2019, "Deep leakage from gradients" (arXiv 1906.08935); Geiping et al. 2020, "Inverting gradients -
how easy is it to break privacy in federated learning?" (arXiv 2003.14053); `_gradient_settings` names the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import get_args

import torch
from torch import Tensor, nn

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.attacks._algebra import Solved
from ppbench.attacks._closed_form import vit_inputs
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._features import features_of, spread
from ppbench.attacks._first_layer import linear_inputs
from ppbench.attacks._gradient_problem import Client, Problem, follows
from ppbench.attacks._gradient_search import Aim, State, at_once, search
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
from ppbench.attacks._labels import errors_of, infer_labels
from ppbench.attacks._released import like_released
from ppbench.attacks._spectrum import spectrum_of
from ppbench.bounds import above_zero, at_least, between
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Defense, UpdateDefense
from ppbench.errors import NotApplicable
from ppbench.updates import prepare
from ppbench.view import View

EXACT = 1e-9  # share of a closed form's equations (squares) that may be left: then nothing needs optimisation
Imitation = Callable[[Tensors, Tensors], Tensors]
TRAINED = 0.05  # spread of the probabilities over public images, above which a network tells them apart
TILE = 4  # pixels of a start of tiles


@dataclass(frozen=True)
class GradientMatching(Attack):
    """Invert federated gradients: closed forms first, the rest by optimisation; presets name the published attacks.

    Recovers the *released* images. With more than one image a gradient, their order within a batch is unknown.

    A preset gives all that is minimised and how; each parameter after it replaces one of its settings (None = as the
    preset says).

    Attributes:
        preset: `ppbench` (ours), or a published attack.
        steps: of the optimiser.
        restarts: independent starts for every update, tried as one batch.
        cull: share of the steps after which only the best start goes on.
        objective: `cosine` distance of the gradients, or their relative squared distance (`euclidean`).
        optimiser: `adam` or `l-bfgs`.
        learning_rate: of Adam, in units of the pixel range [0, 1].
        sign: of the gradient that Adam is given: `hard`, `soft` or `none`.
        schedule: of the learning rate: `constant`, `steps` or `cosine`.
        init: starts: `grey` or the mean of protected `public` images with slight noise, `noise`, `tiles` of noise.
        spectrum: whether Adam steps in the spectrum of public images: of `trained` networks, `always` or `never`.
        labels: `inferred` in closed form, or `optimised`; where the threat model grants them, neither.
        boxed: pixels stay in [0, 1] while Adam runs.
        tv: weight of the total variation.
        lossy_tv: weight of the total variation, beside, where the defense takes part of the gradients away.
        relative: the total variation weighs in proportion to what is left between the gradients.
        statistics: weight of the distance from the running statistics of batch normalisation.
        features: weight of the distance from the last layer's inputs, as its gradients tell them.
        told_errors: of single images, the logits' errors are what the last bias's gradient is.
        group: weight of the distance from the mean of all restarts.
        closed_form: solve for what algebra gives, first.
        fast: compute in bfloat16 but for the last fifth of the steps.
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
    closed_form: bool | None = None
    fast: bool | None = None

    def __post_init__(self) -> None:
        choices = {"preset": Preset, "objective": Objective, "optimiser": Optimiser, "sign": Sign,
                   "schedule": Schedule, "init": Init, "spectrum": Where, "labels": Labels}
        for name, kind in choices.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed and not (value is None and name != "preset"):
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        how = self.settings()
        between(how, 1, MOST_STEPS, "steps")
        at_least(how, 1, "restarts")
        at_least(how, 0, "tv", "lossy_tv", "statistics", "features", "group")
        above_zero(how, "learning_rate", "cull")

    def settings(self) -> Settings:
        """Return the preset's settings, with those that the parameters replace."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "preset"}
        return replace(PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None})

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Reconstruct the released images of every batch of targets."""
        update, how = view.update, self.settings()
        if not all(value.sum(dtype=torch.float64).isfinite() for value in update.values.values()):
            raise NotApplicable("the update holds values that are not finite: lower the client's learning rate")
        net = view.model.build()
        prepare(net, update.bn_train)
        like = like_released(view, rng)
        found, notes, objective = [], [], []
        batch = update.batch * update.clients
        for size, rows in _equal_batches(view.n_targets, batch):
            problem = self._problem(view, net, size, rows, like)
            exact = _algebra(problem, view.released_shape) if how.closed_form and problem.single else None
            one = _matched(problem, how, view, like, rng, None) if exact is None else \
                _completed(problem, how, view, like, rng, *exact)
            found.append(one.images.flatten(0, 1).clamp(0, 1))
            notes.append(one.note)
            objective.append(one.objective)
        single = batch == 1
        notes.append("labels " + ("given" if "labels" in view.granted else how.labels))
        return Reconstruction(torch.cat(found), aligned=single, of="released", within=None if single else batch,
                              note="; ".join(dict.fromkeys(notes)), objective=torch.cat(objective, 1))

    def _problem(self, view: View, net: nn.Module, size: int, rows: slice, like: Tensor) -> Problem:
        """Return the updates of some batches of one size, as mean gradients over a client's steps."""
        update = view.update
        scale = 1 if update.local_steps == 1 else update.learning_rate * update.local_steps
        given = {name: value[rows] / scale for name, value in update.values.items()}
        batch = update.batch * update.clients
        labels = (torch.stack(view.labels.split(batch)[rows]) if "labels" in view.granted
                  else infer_labels(net, given, size, view.classes, like))
        part = update.batch if update.clients > 1 else None
        client = Client(size, part, update.local_steps, update.learning_rate, update.bn_train, update.label_smoothing)
        return Problem(net, given, labels, client, taped=False, imitated=_imitation(view.algorithm.defense))


@dataclass(frozen=True)
class _Found:
    """What was found of some updates.

    Attributes:
        images: `[problems, size, c, h, w]`.
        objective: `[2, problems]`: what was left unexplained at the start and at the end.
        note: how they were found.
    """

    images: Tensor
    objective: Tensor
    note: str


def _completed(problem: Problem, how: Settings, view: View, like: Tensor, rng: torch.Generator, exact: Solved,
               layer: str) -> _Found:
    """Keep what algebra explains; start from the rest."""
    rest = torch.nonzero(exact.residual > EXACT).flatten()
    images, objective = exact.images[:, None], torch.stack([torch.ones_like(exact.residual), exact.residual])
    if len(rest) == 0:
        return _Found(images, objective, f"closed form ({layer})")
    found = _matched(problem[rest], how, view, like, rng, images[rest])
    note = f"closed form ({layer}) for {len(images) - len(rest)} of {len(images)}, others {found.note}"
    return _Found(images.index_copy(0, rest, found.images), objective.index_copy(1, rest, found.objective), note)


def _algebra(problem: Problem, shape: Shape) -> tuple[Solved, str] | None:
    """Solve for single images; say which layer's gradients told them."""
    for solve, layer in ((vit_inputs, "positions"), (linear_inputs, "first layer")):
        found = solve(problem.net, problem.given, shape)
        if found is not None:
            return found, layer
    return None


def _matched(problem: Problem, how: Settings, view: View, like: Tensor, rng: torch.Generator,
             warm: Tensor | None) -> _Found:
    """Search for images, from starts drawn at random and one that is nearly right, if there is one."""
    size = problem.labels.shape[1]
    problem = replace(problem, taped=follows(problem, like[torch.arange(size) % len(like)]))
    spectral = how.optimiser == "adam" and \
        (how.spectrum == "always" or (how.spectrum == "trained" and spread(problem.net, like) > TRAINED))
    how = replace(how, init="public") if spectral else how
    starts = [_start(problem, how, view, like, rng) for _ in range(how.restarts)]
    if warm is not None:
        starts.insert(0, State(warm, starts[0].logits))
    lossy = problem.imitated is not None
    known = None if lossy else \
        features_of(problem.net, problem.given, problem.labels, view.classes, like, view.update.label_smoothing)
    errors = errors_of(problem.net, problem.given, view.classes)
    clean = known is not None and starts[0].logits is None  # nobody added noise, and labels stand
    if how.told_errors and problem.single and clean and errors is not None:
        problem = problem.knowing(errors)
    aim = Aim(how, rng, known, _patch(problem.net), lossy, spectrum_of(like) if spectral else None)
    found = search(problem, starts, aim)
    objective = torch.stack([_distances(problem, images) for images in (starts[-1].images, found.images)])
    ways = {" in the spectrum": spectral, ", errors told": problem.errors is not None, ", through the defense": lossy}
    told = "".join(way for way, taken in ways.items() if taken)
    note = (f"{how.objective}{'+tv' if how.tv else ''}{told}, {how.steps} steps of {how.optimiser}, "
            f"{len(starts)} start(s), cosine distance {objective[1].mean():.2g}")
    return _Found(found.images, objective, note)


def _imitation(defense: Defense) -> Imitation | None:
    """Return what a defense leaves of gradients, where this is not all."""
    if not isinstance(defense, UpdateDefense) or type(defense).imitate is UpdateDefense.imitate:
        return None
    return defense.imitate


def _distances(problem: Problem, images: Tensor) -> Tensor:
    """Return the cosine distances `[problems]`, in double precision: near 0, single precision cancels."""
    parts = torch.arange(len(problem)).split(at_once(problem))
    return torch.cat([problem[rows].explainer(torch.float64)(images[rows].double(), problem.labels[rows])
                      .cosine().detach() for rows in parts]).float()


def _start(problem: Problem, how: Settings, view: View, like: Tensor, rng: torch.Generator) -> State:
    """Draw where a search begins."""
    shape = (*problem.labels.shape, *view.released_shape)
    logits = None
    if how.labels == "optimised" and "labels" not in view.granted:
        logits = torch.randn(*problem.labels.shape, view.classes, generator=rng)
    if how.init == "noise":
        return State(torch.rand(shape, generator=rng), logits)
    if how.init == "tiles":
        tile = torch.rand(*shape[:3], TILE, TILE, generator=rng)
        times = [math.ceil(side / TILE) for side in shape[3:]]
        return State(tile.repeat(1, 1, 1, *times)[..., : shape[3], : shape[4]].contiguous(), logits)
    centre = torch.tensor(0.5) if how.init == "grey" else like.mean(0)
    noise = 0.1 if how.init == "grey" else 0.02
    return State((centre + noise * torch.randn(shape, generator=rng)).clamp(0, 1), logits)


def _patch(net: nn.Module) -> int | None:
    """Return the side of a vision transformer's patches."""
    size = getattr(getattr(getattr(net, "net", None), "patch_embed", None), "patch_size", None)
    return int(size[0]) if isinstance(size, tuple) else None


def _equal_batches(count: int, batch: int) -> list[tuple[int, slice]]:
    """Group `count` targets in batches as (size, rows of the update): the full ones, and a smaller last one."""
    full, rest = divmod(count, batch)
    return [(size, rows) for size, rows in ((batch, slice(0, full)), (rest, slice(full, None)))
            if size and (rows.stop is None or rows.stop)]
