"""Gradients that clients sent, as problems: images and labels must be found that explain them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from ppbench.attacks._heard import heard
from ppbench.attacks._spans import Span
from ppbench.attacks._tape import Tape, Unsupported
from ppbench.attacks._twins import Linear, Loose, Still
from ppbench.attacks._weight_gradients import Sums, added, inner, written_sums
from ppbench.codec import Tensors
from ppbench.errors import NotApplicable

FIRST = 10  # weight of the first layer's statistics (Yin et al. 2021)
TINY = 1e-30  # length of a gradient that is as good as none
BELIEVED = 1e-4  # relative error of a tape's sums, above which its notes are not believed


@dataclass(frozen=True)
class Client:
    """How clients made what they sent, which the server knows.

    Attributes:
        size: images behind what was sent.
        part: images of each client, where several clients' updates were averaged (the last may have fewer).
        local_steps: of gradient descent on the whole batch.
        learning_rate: of these.
        bn_train: batch normalisation by the batch's own statistics.
        label_smoothing: of the loss.
    """

    size: int
    part: int | None = None
    local_steps: int = 1
    learning_rate: float = 1.0
    bn_train: bool = False
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Problem:
    """Several gradients to be explained at once, each by a batch of images.

    Attributes:
        net: prepared for second derivatives.
        given: parameter name -> `[problems, *parameter shape]`, mean gradients over local steps; `[1, ...]` = the same
            for all problems.
        labels: `[problems, size]` int64.
        client: how they were made.
        taped: whether a tape follows the network (`follows`).
        imitated: takes gradients of candidates and what was sent to what a defense would leave of the former; None =
            all of it.
        errors: `[problems, size, classes]`, derivatives of the clients' loss by the logits, where these are told; None
            = they follow from images and labels.
        spans: in which the inputs of some layers lie; where there are any, images are held against these alone.
    """

    net: nn.Module
    given: Tensors
    labels: Tensor
    client: Client
    taped: bool = True
    imitated: Callable[[Tensors, Tensors], Tensors] | None = None
    errors: Tensor | None = None
    spans: tuple[Span, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> "Problem":
        shared = len(next(iter(self.given.values()))) == 1
        return replace(self, given=self.given if shared else {name: value[rows] for name, value in self.given.items()},
                       labels=self.labels[rows], errors=None if self.errors is None else self.errors[rows],
                       spans=tuple(span[rows] for span in self.spans))

    @property
    def single(self) -> bool:
        """Whether each gradient is one image's, and no more than one step was taken."""
        return self.labels.shape[1] == 1 and self.client.local_steps == 1

    def again(self, times: int) -> "Problem":
        """Return a single problem as so many."""
        assert len(self) == 1
        return replace(self, labels=self.labels.repeat(times, 1),
                       errors=None if self.errors is None else self.errors.repeat(times, 1, 1))

    def knowing(self, errors: Tensor) -> "Problem":
        """Return the problem with errors `[problems, size, classes]`; all gradients scaled to length 1.

        The gradients of images that a network is sure of are so small that their squares vanish.
        """
        squares = torch.stack([value.double().flatten(1).square().sum(1) for value in self.given.values()]).sum(0)
        scale = squares.sqrt().clamp(min=TINY)
        given = {name: (value / scale.view(-1, *[1] * (value.ndim - 1))).to(value.dtype)
                 for name, value in self.given.items()}
        return replace(self, given=given, errors=(errors / scale[:, None, None]).to(errors.dtype))

    def weights(self) -> int:
        """Return the number of values in a gradient."""
        return sum(math.prod(value.shape[1:]) for value in self.given.values())

    def explainer(self, dtype: torch.dtype = torch.float32) -> "Explainer":
        """Return what holds images against the gradients, computing in a precision."""
        if self.spans:
            return Spanned(self, dtype)
        return Taped(self, dtype) if self.taped else Unrolled(self, dtype)


@dataclass(frozen=True)
class Explained:
    """How the gradients of images lie to the given ones.

    Attributes:
        product: `[problems]`, with the given ones.
        square: `[problems]`, of their own.
        norm: `[problems]` or `[1]`, the given ones' square.
        features: `[problems, size, features]`, inputs of the last layer; None = unknown.
        strays: tells the distance of what passes from running statistics, `[problems]`; None = there are none.
        positions: `[problems]`, cosine distance of the position embeddings' gradients; None = there are none.
    """

    product: Tensor
    square: Tensor
    norm: Tensor
    features: Tensor | None = None
    strays: Callable[[], Tensor] | None = None
    positions: Tensor | None = None

    def cosine(self) -> Tensor:
        """Return 1 - cosine `[problems]`."""
        return cosine_distance((self.product, self.square), self.norm)

    def euclidean(self) -> Tensor:
        """Return the squared distances `[problems]`, relative to the given gradients' squares."""
        return (self.square - 2 * self.product + self.norm) / self.norm.clamp(min=_least(self.norm))


class Explainer(ABC):
    """Holds images against gradients."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.problem = problem
        self.dtype = torch.promote_types(dtype, torch.float32)  # of the images
        self.norm = torch.stack([value.flatten(1).to(self.dtype).square().sum(1)
                                 for value in problem.given.values()]).sum(0)

    @abstractmethod
    def __call__(self, images: Tensor, goals: Tensor) -> Explained:
        """Hold images `[problems, size, c, h, w]` and labels `[problems, size]` or shares `[..., classes]` to them."""

    def loss(self, logits: Tensor, goals: Tensor, size: int) -> Tensor:
        """Return the clients' loss, a sum over problems, of logits `[problems * size, classes]`.

        Where its derivatives are told, it is the linear function that has them.
        """
        if self.problem.errors is not None:
            return (logits * self.problem.errors.flatten(0, 1).to(logits)).sum()
        return cross_entropy(logits, goals.flatten(0, 1), label_smoothing=self.problem.client.label_smoothing,
                             reduction="sum") / size


class Taped(Explainer):
    """By a tape: one gradient of a mean loss, of networks whose layers all have twins."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        super().__init__(problem, dtype)
        self.tape = Tape(problem.net, problem.given, dtype)

    def __call__(self, images: Tensor, goals: Tensor) -> Explained:
        """Hold images and labels against the gradients."""
        problems, size = images.shape[:2]
        with torch.enable_grad():
            images = images if images.requires_grad else images.detach().requires_grad_()
            logits = self.tape(images.flatten(0, 1), problems)
            product, square = self.tape.sums(self.loss(logits, goals, size))
        return Explained(product, square, self.norm, self._features(problems), self._strays(problems),
                         self._positions())

    def _features(self, problems: int) -> Tensor | None:
        last = [note.inputs for note in self.tape.notes if isinstance(note.twin, Linear)][-1:]
        return last[0].unflatten(0, (problems, -1)).to(self.dtype) if last and last[0].ndim == 2 else None

    def _strays(self, problems: int) -> Callable[[], Tensor] | None:
        passed = [(note.twin, note.inputs) for note in self.tape.notes if isinstance(note.twin, Still)]
        return partial(_strayed, passed, problems, self.dtype) if passed else None

    def _positions(self) -> Tensor | None:
        sums = [(self.tape.told[note.twin], note.twin.given["pos_embed"]) for note in self.tape.notes
                if isinstance(note.twin, Loose) and note.twin.name == "pos_embed"]
        return cosine_distance(sums[0][0], inner(sums[0][1], sums[0][1])) if sums else None


class Spanned(Explainer):
    """By the spans in which the inputs of some layers lie: no derivative of gradients, nor labels."""

    def __call__(self, images: Tensor, goals: Tensor) -> Explained:
        """Hold images against the spans; the cosine distance is the mean share of the inputs beside them."""
        layers = {name: layer for name, layer in self.problem.net.named_modules() if isinstance(layer, nn.Linear)
                  or name in {span.layer for span in self.problem.spans}}
        seen = dict(heard(self.problem.net, layers, images.flatten(0, 1).to(self.norm.dtype))[1])
        inside = torch.stack([span.inside(seen[span.layer]) for span in self.problem.spans]).mean(0)
        last = [seen[name] for name in seen if isinstance(layers[name], nn.Linear)][-1:]
        features = last[0].unflatten(0, (len(images), -1)) if last and last[0].ndim == 2 else None
        return Explained(inside, torch.ones_like(inside), torch.ones_like(inside), features)


class Unrolled(Explainer):
    """By torch's own derivatives of everything that clients do: any network, several local steps, several clients."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        super().__init__(problem, dtype)
        self.net = _for_vmap(problem.net).to(self.dtype)
        self.fixed = {name: value.detach() for name, value in self.net.named_parameters()}
        self.own = {name: self.fixed.pop(name) for name in problem.given}
        self.given = {name: value.to(self.dtype) for name, value in problem.given.items()}

    def __call__(self, images: Tensor, goals: Tensor) -> Explained:
        """Hold images and labels against the gradients."""
        images, goals = images.to(self.dtype), goals.expand(len(images), *goals.shape[1:])
        if self.problem.errors is not None:
            made = vmap(grad(self._linear), in_dims=(None, 0, 0), randomness="different")(
                self.own, images, self.problem.errors.to(self.dtype))
        else:
            made = vmap(self._sent, randomness="different")(images, goals)
        if self.problem.imitated is not None:
            made = self.problem.imitated(made, self.given)
        return Explained(*added(*(written_sums(made[name], value) for name, value in self.given.items())), self.norm)

    def _linear(self, own: Tensors, images: Tensor, errors: Tensor) -> Tensor:
        """Return the linear function of the logits that has the errors as its derivatives."""
        logits: Tensor = functional_call(self.net, (own, self.fixed), (images,))
        return (logits * errors).sum()

    def _sent(self, images: Tensor, goals: Tensor) -> Tensors:
        """Return the mean of what clients send, each on its part of the images."""
        part = self.problem.client.part or len(images)
        sent = [self._update(x, y) for x, y in zip(images.split(part), goals.split(part), strict=True)]
        return {name: torch.stack([one[name] for one in sent]).mean(0) for name in self.own}

    def _update(self, images: Tensor, goals: Tensor) -> Tensors:
        """Return the mean gradient over a client's local steps."""
        def loss(own: Tensors) -> Tensor:
            logits = functional_call(self.net, (own, self.fixed), (images,))
            return cross_entropy(logits, goals, label_smoothing=self.problem.client.label_smoothing)

        now = self.own
        steps, rate = self.problem.client.local_steps, self.problem.client.learning_rate
        total = {name: torch.zeros_like(value) for name, value in now.items()}
        for _ in range(steps):
            slopes = grad(loss)(now)
            total = {name: value + slopes[name] / steps for name, value in total.items()}
            now = {name: value - rate * slopes[name] for name, value in now.items()}
        return total


def _strayed(passed: list[tuple[Still, Tensor]], problems: int, dtype: torch.dtype) -> Tensor:
    found = []
    for layer, inputs in passed:
        grouped = inputs.to(dtype).unflatten(0, (problems, -1))
        variance, mean = torch.var_mean(grouped, (1, 3, 4), correction=0)
        found.append((mean - layer.mean).norm(dim=1) + (variance - layer.variance).norm(dim=1))
    return torch.stack([FIRST * found[0], *found[1:]]).sum(0)


def follows(problem: Problem, images: Tensor) -> bool:
    """Say whether a tape follows what clients did, by holding its sums against torch's own for a batch of images.

    Args:
        problem: any.
        images: `[size, c, h, w]`.
    """
    client = problem.client
    alike = client.part is None or (client.size % client.part == 0 and not client.bn_train)
    if client.local_steps > 1 or not alike or problem.imitated is not None:
        return False
    first = problem[torch.tensor([0])]
    try:
        taped = Taped(first, torch.float64)(images[None], first.labels)
    except (Unsupported, RuntimeError):
        return False
    true = Unrolled(first, torch.float64)(images[None].double(), first.labels)
    scale = (true.square * true.norm).sqrt()
    return bool(((taped.product - true.product).abs() <= BELIEVED * scale + 1e-12).all()
                and ((taped.square - true.square).abs() <= BELIEVED * true.square + 1e-12).all())


def check_slopes(problem: Problem, images: Tensor) -> None:
    """Make sure that gradients of the first problem can be matched: the network has second derivatives.

    Args:
        problem: any.
        images: `[size, c, h, w]`.

    Raises:
        NotApplicable: it has none; says why.
    """
    first = problem[torch.tensor([0])]
    with torch.enable_grad():
        some = images[None].detach().requires_grad_()
        try:
            torch.autograd.grad(first.explainer()(some, first.labels).cosine().sum(), some)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotApplicable("the victim cannot be differentiated twice, which matching gradients needs: choose a "
                                f"model without such layers in [victim] ({str(error).splitlines()[0]})") from error


def _for_vmap(net: nn.Module) -> nn.Module:
    """Copy a network; batch normalisation in train mode keeps no running statistics (written in place, none batch)."""
    net = deepcopy(net)
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.training:
            module.track_running_stats, module.num_batches_tracked = False, None
            module.running_mean = module.running_var = None
    return net


def cosine_distance(sums: Sums, norm: Tensor) -> Tensor:
    """Return 1 - cosine `[problems]`, of products and squares and the given gradients' squares."""
    product, square = sums
    return 1 - product / (square * norm).clamp(min=_least(norm)).sqrt()


def _least(values: Tensor) -> float:
    return float(torch.finfo(values.dtype).tiny)
