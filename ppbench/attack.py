"""The attack contract: a view in, a reconstruction out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ppbench.codec import Tensors
from ppbench.data import Images
from ppbench.defense import Release
from ppbench.errors import ContractError, UserError
from ppbench.model import Model
from ppbench.view import Capability, View

Priors = Mapping[str, Tensors]


@dataclass(frozen=True)
class Reconstruction:
    """An attack's estimate of the targets.

    Attributes:
        images: `[n_targets, C, H, W]` in [0, 1] (`of = "released"`: in the shape of the released images).
        aligned: estimate i is of target i; otherwise the estimates are an unordered set.
        of: `private` images, or the `released` ones, which an inner attack or the scorer then takes further.
        within: where not aligned, the estimates are unordered only within consecutive batches of this many.
        note: what a reader of the row should know, in a few words.
        objective: `[points]` or `[points, n]`: what the attack minimised, from its start to its end, where it did;
            one that never fell makes the row suspect.
    """

    images: Tensor
    aligned: bool = True
    of: Literal["private", "released"] = "private"
    within: int | None = None
    note: str = ""
    objective: Tensor | None = None


@dataclass(frozen=True)
class Membership:
    """How sure an attack is of each candidate's membership.

    Attributes:
        scores: `[N]` float, in the order of `View.candidates`; higher for whoever is taken for a member.
        note: what a reader of the row should know, in a few words.
    """

    scores: Tensor
    note: str = ""


class Prior(ABC):
    """What an adversary learns once and uses in many cells: a GAN, an inverter.

    Subclasses are frozen dataclasses of parameters. Priors are cached by what they can see (`seen`), their parameters
    and code, and shared by all attacks and cells for which these agree.

    Attributes:
        needs: the capabilities that training reads.
    """

    needs: ClassVar[frozenset[Capability]]

    @abstractmethod
    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Learn from a view cut down by `seen`; return weights or tables."""

    def seen(self, view: View) -> View:
        """Cut a view down to `needs`; to less, where training would not look at the rest."""
        return view.only(self.needs)


class Attack(ABC):
    """Reconstructs private images from a view, or tells which were used. A subclass is a dataclass of parameters.

    Who requires `candidates` returns a `Membership`, all others a `Reconstruction`.

    Attributes:
        requires: the capabilities without which the attack cannot run (a literal frozenset).
        uses: what it uses besides, where it is granted; only who names `oracle` here or above is asked for `queries`.
        default_threat: the threat model used when a suite names none.
        role: `floor` and `ceiling` are yardsticks beside which the attacks are read; they are never ranked.
        shows: what an estimate is to show: the target's `image`, or its `class` (the person, where classes are people),
            which `verification` finds and measures against an image do not.
        ceiling: SSIM that the attack must reach on the defense `none` under its default threat model; below it, its
            rows are suspect.
    """

    requires: ClassVar[frozenset[Capability]]
    uses: ClassVar[frozenset[Capability]] = frozenset()
    default_threat: ClassVar[str]
    role: ClassVar[Literal["attack", "floor", "ceiling"]] = "attack"
    shows: ClassVar[Literal["image", "class"]] = "image"
    ceiling: ClassVar[float | None] = None

    def priors(self, view: View) -> dict[str, Prior]:
        """Name what must have been learnt before `run`; default: nothing."""
        return {}

    def queries(self, view: View) -> Tensor:
        """Choose images `[q, C, H, W]` for the oracle (attacks that require or use `oracle`)."""
        return torch.empty(0, *view.image_shape)

    @abstractmethod
    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction | Membership:
        """Return an estimate of the targets, or a score a candidate; draw whatever is random from `rng`."""


class TrainingAttack(Attack):
    """An attack by whoever wrote the training code (threat model `malicious-trainer`).

    `more`, `penalty` and `finish` run in the trainer's process and see the release, the targets' images first;
    `run` later sees the weights alone.
    """

    def more(self, release: Release, classes: int, rng: torch.Generator) -> Images | None:
        """Return images, of the released shape, and labels to learn beside the release; None = none."""
        return None

    def penalty(self, release: Release, net: nn.Module, rng: torch.Generator,
                ) -> Callable[[nn.Module], Tensor] | None:
        """Return a term to add to the training loss; None = none."""
        return None

    def finish(self, release: Release, state: Tensors, rng: torch.Generator) -> Tensors:
        """Return the trained weights with whatever is to be hidden in them."""
        return state


class CraftingAttack(Attack):
    """An attack by a server that may hand out any model (threat model `malicious-server`).

    The clients' updates are taken at the crafted model; `run` later sees that model and the updates.
    """

    @abstractmethod
    def craft(self, view: View, rng: torch.Generator) -> Model:
        """Return the model that clients get, with weights, in the place of the true one.

        Args:
            view: what the server knows before anybody answers: `gradients`, `pairs` and `oracle` are missing.
            rng: what is random comes from here.

        Returns:
            Takes the released images and gives one logit a class; its factory must be importable by name.
        """


def check_more(found: object, release: Release, classes: int) -> None:
    """Hold what a trainer adds to a release to the contract.

    Raises:
        ContractError: says in one sentence what is wrong.
    """
    if not isinstance(found, Images):
        raise ContractError(f"more() returned {type(found).__name__}; it must return Images, or None")
    if found.shape != release.shape:
        raise ContractError(f"more() returned images of the shape {list(found.shape)}; they must have the released "
                            f"shape {list(release.shape)}")
    if found.pixels.dtype != torch.float32 or not found.pixels.isfinite().all():
        raise ContractError("more() returned images that are not finite float32")
    if len(found.labels) != len(found) or ((found.labels < 0) | (found.labels >= classes)).any():
        raise ContractError(f"more() returned labels that are not one an image, from 0 to {classes - 1}")


def check_crafted(found: object, view: View) -> None:
    """Hold a crafted model to the contract.

    Raises:
        ContractError: says in one sentence what is wrong.
    """
    if not isinstance(found, Model):
        raise ContractError(f"craft() returned a {type(found).__name__}; it must return a Model")
    if found.state is None:
        raise ContractError("craft() returned a model without weights; set its state (Model.with_state)")
    try:
        with torch.no_grad():
            logits = found.build().eval()(torch.zeros(2, *view.released_shape))
    except (UserError, RuntimeError) as error:
        raise ContractError(f"craft() returned a model that does not take the released images ({error}); fit it to "
                            "view.released_shape") from error
    if tuple(logits.shape) != (2, view.classes) or not logits.isfinite().all():
        raise ContractError(f"craft() returned a model whose logits have the shape {list(logits.shape)}; they must be "
                            f"finite numbers [2, {view.classes}]")


def _check_facts(found: Reconstruction) -> None:
    """Hold what stands beside the images to its types: it goes on into rows and scores."""
    if not isinstance(found.aligned, bool) or found.of not in ("private", "released"):
        raise ContractError(f"the reconstruction says aligned = {found.aligned!r} and of = {found.of!r}; aligned must "
                            "be True or False, of \"private\" or \"released\"")
    if found.within is not None and (type(found.within) is not int or found.within < 1):
        raise ContractError(f"the reconstruction says within = {found.within!r}; it must be a number of images or None")
    if not isinstance(found.note, str):
        raise ContractError(f"the reconstruction's note is a {type(found.note).__name__}; it must be a string")
    trace = found.objective
    if trace is not None and not (isinstance(trace, Tensor) and trace.ndim in (1, 2) and trace.numel()
                                  and trace.is_floating_point()):
        raise ContractError("the reconstruction's objective must be a float tensor [points] or [points, n], or None")


def check_outcome(found: object, view: View, accuses: bool) -> None:
    """Hold an attack's result to the contract; `accuses`: it requires `candidates`.

    Raises:
        ContractError: says in one sentence what is wrong.
    """
    if accuses:
        check_membership(found, view)
    else:
        check_reconstruction(found, view)


def check_membership(found: object, view: View) -> None:
    """Hold an attack's scores of candidates to the contract.

    Raises:
        ContractError: says in one sentence what is wrong.
    """
    if not isinstance(found, Membership) or not isinstance(found.scores, Tensor):
        raise ContractError(f"the attack returned a {type(found).__name__}; as it requires 'candidates', it must "
                            "return a Membership")
    if not isinstance(found.note, str):
        raise ContractError(f"the membership's note is a {type(found.note).__name__}; it must be a string")
    count, scores = len(view.candidates.images), found.scores
    if tuple(scores.shape) != (count,) or not scores.is_floating_point() or not scores.isfinite().all():
        raise ContractError(f"the attack returned {scores.dtype} scores of the shape {list(scores.shape)}; they must "
                            f"be finite floats [{count}], one a candidate")


def check_reconstruction(found: object, view: View) -> None:
    """Hold an attack's result to the contract.

    Raises:
        ContractError: says in one sentence what is wrong.
    """
    if not isinstance(found, Reconstruction) or not isinstance(found.images, Tensor):
        raise ContractError(f"the attack returned a {type(found).__name__}; it must return a Reconstruction")
    _check_facts(found)
    images = found.images
    shape = view.image_shape if found.of == "private" else view.released_shape
    if images.ndim != 4 or len(images) != view.n_targets:
        raise ContractError(f"the attack returned images of shape {list(images.shape)}; it must return exactly "
                            f"{view.n_targets} images, one a target")
    if tuple(images.shape[1:]) != tuple(shape):
        raise ContractError(f"the attack returned images of shape {list(images.shape[1:])}; it must be {list(shape)}")
    if not torch.is_floating_point(images) or not torch.isfinite(images).all():
        raise ContractError("the attack returned images that are not finite floats")
    if images.min() < -1e-4 or images.max() > 1 + 1e-4:
        raise ContractError(f"the attack returned values from {images.min():.3g} to {images.max():.3g}; "
                            "they must lie in [0, 1]")
