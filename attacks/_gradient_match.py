"""From what a federated server sees to the images behind it: closed forms first, then one search, set up."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppbench.attacks._algebra import Solved
from ppbench.attacks._closed_form import vit_inputs
from ppbench.attacks._features import Features, features_of, spread
from ppbench.attacks._first_layer import linear_inputs
from ppbench.attacks._gan_nets import GeneratorNet
from ppbench.attacks._gradient_latent import generated
from ppbench.attacks._gradient_problem import Client, Problem, check_slopes, follows
from ppbench.attacks._gradient_search import Aim, Found, State, at_once, search
from ppbench.attacks._gradient_settings import Settings
from ppbench.attacks._labels import errors_of, infer_labels, last_linear
from ppbench.attacks._spans import spans_of
from ppbench.attacks._spectrum import Spectrum, spectrum_of
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Defense, UpdateDefense
from ppbench.model import Update
from ppbench.view import View

EXACT = 1e-9  # share of a closed form's equations (squares) that may be left: then nothing needs optimisation
TRAINED = 0.05  # spread of the probabilities over public images, above which a network tells them apart
RESTARTS = 8  # of trained networks, whose searches often end at an image that explains most of a gradient, and is wrong
SPANS_AT_ONCE = 8  # problems: bounds the memory
SPAN_RATE = 0.05  # of steps by spans, with slopes as they are
DRAWN = 0.7  # of the deviations of public images, in restarts
TILE = 4  # pixels of a start of tiles
Imitation = Callable[[Tensors, Tensors], Tensors]
Believed = Callable[[Tensor], Tensor]  # of estimates `[..., c, h, w]`, what is believed of them


@dataclass(frozen=True)
class Scene:
    """What a server knows, whatever it searches for.

    Attributes:
        view: what it sees.
        net: the network at which updates were taken, prepared for them.
        like: `[M, c, h, w]`, images like the released ones.
        rng: draws starts.
        generator: of images like the public ones; None = there is none.
        tapes: whether one follows the network, for clients that were asked about (`followed`).
    """

    view: View
    net: nn.Module
    like: Tensor
    rng: torch.Generator
    generator: GeneratorNet | None = None
    tapes: dict[Client, bool] = field(default_factory=dict)

    @cached_property
    def trained(self) -> bool:
        """Whether the network tells public images apart."""
        return spread(self.net, self.like) > TRAINED

    @cached_property
    def spectrum(self) -> Spectrum:
        """The spectrum of images like the released ones."""
        return spectrum_of(self.like)

    def problem(self, update: Update, size: int, rows: slice, labels: Tensor | None) -> Problem:
        """Return the updates of some batches of one size, as mean gradients over a client's steps.

        Args:
            update: what was sent.
            size: images in each of these batches.
            rows: which of its batches.
            labels: of the images of all batches, in turn; None = they are inferred.
        """
        scale = 1 if update.local_steps == 1 else update.learning_rate * update.local_steps
        given = {name: value[rows] / scale for name, value in update.values.items()}
        goals = (torch.stack(labels.split(update.batch * update.clients)[rows]) if labels is not None
                 else infer_labels(self.net, given, size, self.view.classes, self.like))
        part = update.batch if update.clients > 1 else None
        client = Client(size, part, update.local_steps, update.learning_rate, update.bn_train, update.label_smoothing)
        return Problem(self.net, given, goals, client, taped=False, imitated=_imitation(self.view.algorithm.defense))

    def followed(self, problem: Problem) -> Problem:
        """Return a problem with a tape, where one follows the network: which is found out once for all like it.

        Raises:
            NotApplicable: the network has no second derivatives.
        """
        if problem.client not in self.tapes:
            some = self.like[torch.arange(problem.client.size) % len(self.like)]
            check_slopes(problem, some)
            self.tapes[problem.client] = follows(problem, some)
        return replace(problem, taped=self.tapes[problem.client])

    def doubts(self, update: Update, labels: Tensor | None) -> list[str]:
        """Say where given labels `[N]`, of single images, are not those that the last layer's gradients tell."""
        if labels is None or update.batch * update.clients > 1 or update.local_steps > 1:
            return []
        bias = update.values.get(f"{last_linear(self.net, self.view.classes)}.bias")
        wrong = int((bias.argmin(1) != labels).sum()) if bias is not None else 0
        return [f"given labels contradict the gradients of {wrong} of {len(labels)}"] if wrong else []


@dataclass(frozen=True)
class Algebra:
    """What closed forms gave.

    Attributes:
        solved: images, and how much of their equations was left.
        layer: whose gradients told them.
    """

    solved: Solved
    layer: str

    @property
    def open(self) -> Tensor:
        """Rows of the problems that are not explained exactly."""
        return torch.nonzero(self.solved.residual > EXACT).flatten()


@dataclass(frozen=True)
class Matched:
    """What was found of some updates.

    Attributes:
        images: `[problems, size, c, h, w]`.
        objective: `[2, problems]`: what was left unexplained at the start and at the end.
        note: how they were found.
    """

    images: Tensor
    objective: Tensor
    note: str


def solved(problem: Problem, how: Settings, shape: Shape) -> Algebra | None:
    """Solve for single images, where a layer's gradients tell them and the settings allow it."""
    if not (how.closed_form and problem.single):
        return None
    for solve, layer in ((vit_inputs, "positions"), (linear_inputs, "first layer")):
        found = solve(problem.net, problem.given, shape)
        if found is not None:
            return Algebra(found, layer)
    return None


def recovered(problem: Problem, how: Settings, scene: Scene, algebra: Algebra | None,
              believed: Believed | None = None) -> Matched:
    """Keep what algebra explains; search for the rest, from where algebra got; of that, keep what is believed."""
    if algebra is None:
        return _searched(problem, how, scene, None, believed)
    exact, rest = algebra.solved, algebra.open
    images, objective = exact.images[:, None], torch.stack([torch.ones_like(exact.residual), exact.residual])
    if len(rest) == 0:
        return Matched(images, objective, f"closed form ({algebra.layer})")
    found = _searched(problem[rest], how, scene, images[rest], believed)
    note = f"closed form ({algebra.layer}) for {len(images) - len(rest)} of {len(images)}, others {found.note}"
    return Matched(images.index_copy(0, rest, found.images), objective.index_copy(1, rest, found.objective), note)


def _searched(problem: Problem, how: Settings, scene: Scene, warm: Tensor | None, believed: Believed | None) -> Matched:
    """Search for images, from starts drawn at random and one that is nearly right, if there is one."""
    problem = scene.followed(problem)
    spectral = how.optimiser == "adam" and how.spectrum == "always"
    how = replace(how, init="public") if spectral else how
    fresh = _start(problem, how, scene)
    lossy = problem.imitated is not None
    known = None if lossy else _features(problem, scene)
    within = Aim(how, scene.rng, known, spectrum=scene.spectrum if spectral else None)
    spanned = _spanned(problem, within, fresh) if how.spans and problem.single else None
    restarts = how.restarts or (RESTARTS if scene.trained and spectral and spanned is None else 1)
    starts = [fresh if spanned is None else spanned, *(_again(problem, how, scene) for _ in range(restarts - 1))]
    if warm is not None:
        starts.insert(0, replace(fresh, images=warm))
    errors = errors_of(problem.net, problem.given, scene.view.classes)
    clean = known is not None and starts[0].logits is None  # nobody added noise, and labels stand
    if how.told_errors and problem.single and clean and errors is not None:
        problem = problem.knowing(errors)
    aim = Aim(how, scene.rng, known, _patch(problem.net), lossy, scene.spectrum if spectral else None)
    found = _found(problem, starts, aim, scene.generator)
    objective = torch.stack([_distances(problem, images) for images in (fresh.images, found.images)])
    ways = {" in the spectrum": spectral, " from the spans of activations": spanned is not None,
            " from a public generator": scene.generator is not None,
            ", errors told": problem.errors is not None, ", through the defense": lossy}
    told = "".join(way for way, taken in ways.items() if taken)
    note = (f"{how.objective}{'+tv' if how.tv else ''}{told}, {how.steps} steps of {how.optimiser}, "
            f"{len(starts)} start(s), cosine distance {objective[1].mean():.2g}")
    return Matched(found.images if believed is None else believed(found.images), objective, note)


def _spanned(problem: Problem, aim: Aim, start: State) -> State | None:
    """Look for images whose activations lie where gradients say; None = these do not say, or not undisturbed."""
    if aim.known is None or any(isinstance(layer, _BatchNorm) and layer.training for layer in problem.net.modules()):
        return None  # a defense changed gradients, or they contradict each other; or images of problems would mix
    how = replace(aim.settings, objective="cosine", optimiser="adam", sign="none", learning_rate=SPAN_RATE,
                  steps=aim.settings.spans, fast=False, group=0.0)
    aim, images, told = replace(aim, settings=how), start.images.clone(), False
    for rows in torch.arange(len(problem)).split(SPANS_AT_ONCE):
        some = problem[rows]
        spans = spans_of(some.net, some.given, images[0])
        if spans:
            images[rows], told = search(replace(some, spans=spans), [State(images[rows])], aim[rows]).images, True
    return replace(start, images=images) if told else None


def _found(problem: Problem, starts: list[State], aim: Aim, generator: GeneratorNet | None) -> Found:
    """Search, first in a generator where there is one."""
    how = aim.settings
    early = round(how.generator * how.steps)
    if generator is None or early == 0:
        return search(problem, starts, aim)
    drawn = generated(problem, generator, aim, early)
    if early == how.steps:
        return drawn
    later = replace(aim, settings=replace(how, steps=how.steps - early))
    return search(problem, [*starts[:-1], replace(starts[-1], images=drawn.images)], later)


def _features(problem: Problem, scene: Scene) -> Features | None:
    """Return the last layer's inputs, as its gradients tell them."""
    return features_of(problem.net, problem.given, problem.labels, scene.view.classes, scene.like,
                       scene.view.update.label_smoothing)


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


def _again(problem: Problem, how: Settings, scene: Scene) -> State:
    """Draw where a restart begins: of starts near the public mean, at an image with the spectrum of public ones."""
    start, spectrum = _start(problem, how, scene), scene.spectrum
    if how.init != "public":
        return start
    drawn = spectrum.images(spectrum.deviations * torch.randn(start.images.shape, generator=scene.rng))
    return replace(start, images=(spectrum.mean + DRAWN * drawn).clamp(0, 1))


def _start(problem: Problem, how: Settings, scene: Scene) -> State:
    """Draw where a search begins."""
    view, rng = scene.view, scene.rng
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
    centre = torch.tensor(0.5) if how.init == "grey" else scene.like.mean(0)
    noise = 0.1 if how.init == "grey" else 0.02
    return State((centre + noise * torch.randn(shape, generator=rng)).clamp(0, 1), logits)


def _patch(net: nn.Module) -> int | None:
    """Return the side of a vision transformer's patches."""
    size = getattr(getattr(getattr(net, "net", None), "patch_embed", None), "patch_size", None)
    return int(size[0]) if isinstance(size, tuple) else None
