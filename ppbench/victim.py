"""The victim: the network that is trained on a release, centrally or by federated clients."""

from typing import Any

import torch
from torch import Tensor, nn

from ppbench.central import School, train_centrally
from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.defense import Defense, Keys, Release
from ppbench.device import device
from ppbench.errors import UserError, first_line
from ppbench.federated import train_federated
from ppbench.lessons import Lessons, Same, lesson_of
from ppbench.model import Model, for_images
from ppbench.recipe import Recipe
from ppbench.seeding import seeded
from ppbench.task import Classification, Task
from ppbench.training import Penalty, Shield
from ppbench.weights import take_over


def start(recipe: Recipe, defense: Defense, keys: Keys | None, shape: Shape, classes: int,
          weights: Tensors | None = None) -> Model:
    """Return the public starting point: the plain network's weights, fitted to protected images by the defense.

    Fresh weights come from the global generator, which the frame has seeded; the plain network's are drawn first, so
    that they are the same for every defense.

    Args:
        recipe: names the architecture.
        defense: may adapt it, and its weights.
        keys: the clients' keys, if any.
        shape: (C, H, W) of the private images.
        classes: number of classes.
        weights: given ones, by the names of the plain network.

    Raises:
        UserError: the architecture is unknown, refuses its arguments or the weights, or the defense cannot adapt it.
    """
    return adapted(plain_start(recipe, shape, classes, weights), defense, keys)


def plain_start(recipe: Recipe, shape: Shape, classes: int, weights: Tensors | None = None) -> Model:
    """Return the plain network with the weights to start from, the same for every defense.

    Raises:
        UserError: the architecture is unknown, or refuses its arguments or the weights.
    """
    plain = for_images(recipe.model, recipe.kwargs, shape, classes)
    net: Any = plain.build()
    if weights is not None:
        take_over(net.net, weights, recipe.model)
    return plain.with_state(net)


def adapted(plain: Model, defense: Defense, keys: Keys | None) -> Model:
    """Let a defense fit the plain network to protected images; weights that it leaves open are drawn afresh."""
    found = defense.adapt(plain, keys)
    return found if found.state is not None else found.with_state(found.build())


def train(model: Model, release: Release, recipe: Recipe, rng: torch.Generator,
          penalty: Penalty | None = None) -> Model:
    """Train on a release as it is, by the same images in every epoch; return the model with its last weights.

    Args:
        model: where to start.
        release: `[M, c, h, w]` images and their labels.
        recipe: epochs, batch size and rates.
        rng: draws the order of the images (and, where the network has it, dropout).
        penalty: a term that a malicious trainer adds to the loss.

    Raises:
        UserError: the network does not fit the released images or labels, or the loss stops being finite.
    """
    return teach(model, Same(lesson_of(release)), recipe, rng, penalty=penalty)[0]


def teach(model: Model, lessons: Lessons, recipe: Recipe, rng: torch.Generator, *, task: Task | None = None,
          penalty: Penalty | None = None, owner: Tensor | None = None, until: int | None = None,
          shield: Shield | None = None) -> tuple[Model, str]:
    """Train on lessons; return the model with its last weights, and a warning ("" = the loss fell).

    Args:
        model: where to start.
        lessons: what is learnt in each epoch.
        recipe: how.
        rng: draws the order of the images (and, where the network has it, dropout).
        task: gives the loss; classification by default.
        penalty: a term that a malicious trainer adds to the loss.
        owner: `[M]` who holds each image of a lesson; None = one trainer has them all.
        until: epochs (federated: rounds) after which to stop, the schedule unchanged; None = all.
        shield: protects the updates that are learnt from.

    Raises:
        UserError: the network does not fit the images or labels, memory does not suffice, or the loss stops being
            finite.
    """
    task = task or Classification(recipe.label_smoothing)
    with seeded(int(torch.randint(2**62, (), generator=rng))) as own:
        net = model.build()
        first = lessons.of_epoch(torch.Generator().manual_seed(0))
        check_fits(model, net, first.images, first.goals, task)
        school = School(model.factory, lessons, len(first), recipe, task, penalty, until, shield)
        warning = train_centrally(net, school, own) if owner is None else train_federated(net, school, owner, own)
        return model.with_state(net), warning


def accuracy(model: Model, images: Tensor, labels: Tensor, batch: int = 256, task: Task | None = None) -> float:
    """Return how well test images `[N, c, h, w]` are served, in [0, 1]: for classes, the share that is right."""
    task = task or Classification()
    with seeded(0), torch.no_grad():
        net = model.build().eval()
        check_fits(model, net, images, labels, task)
        net.to(device())
        outputs = [net(x.to(device())).float().cpu() for x in images.split(batch)]
    return task.score(torch.cat(outputs), labels)


def check_fits(model: Model, net: nn.Module, images: Tensor, goals: Tensor, task: Task | None = None) -> None:
    """Hold a network against the images and goals it is to see.

    Raises:
        UserError: it refuses the images' shape, or its outputs do not serve the goals.
    """
    if len(images) == 0:
        raise UserError("there are no images for the victim: raise the number of images in the data set's table")
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            outputs = net(images[:1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"the victim {model.factory!r} cannot take images of shape {list(images.shape[1:])}: choose "
                        f"another model in [victim] ({first_line(error)})") from error
    net.train(was_training)
    misfit = (task or Classification()).misfit(outputs, goals)
    if misfit:
        raise UserError(f"the victim {model.factory!r} {misfit}")
