"""From a release to a victim and its updates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppbench import victim
from ppbench.attack import TrainingAttack, check_more
from ppbench.codec import Tensors
from ppbench.data import Images, Split
from ppbench.defense import Release, draw_keys
from ppbench.errors import ContractError, UserError
from ppbench.files import file_digest
from ppbench.lessons import Extended, Lessons, Renewed, Same, lesson_of
from ppbench.model import Model
from ppbench.recipe import Recipe
from ppbench.seeding import derive_seed, generator, spawn
from ppbench.stages.values import (
    Clients,
    Inputs,
    Keyring,
    Made,
    Protected,
    Table,
    Trained,
    attack_of,
    defense_of,
    threat_of,
)
from ppbench.training import Shield
from ppbench.updates import client_update
from ppbench.weights import published, read_weights


def make_weights(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Read the weights that the victim starts from."""
    if "file" in params:
        path, name = Path(params["file"]["file"]), params["file"]["name"]
        if not path.is_file() or not name.endswith(f"@{file_digest(path)[:12]}"):
            raise UserError(f"the weights {str(path)!r} were changed or removed during the run: run again")
        return Made(Table(read_weights(path)))
    return Made(Table(published(params["model"], params["kwargs"])))


def make_start(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Draw the victim's public starting weights, in the architecture for this defense."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    recipe, weights = Recipe(**params["recipe"]), inputs.maybe(Table, "weights")
    plain = victim.plain_start(recipe, images.private.shape, images.classes, weights.values if weights else None)
    model = victim.adapted(plain, defense_of(params), keys.private)
    return Made(model, {"adapted": _changed(model, plain)})


def check_victim(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Hold the victim, plain and adapted, against plain and protected images of a shape.

    Where protection costs much, nothing is protected.

    Raises:
        UserError: they do not fit; says what would.
    """
    recipe, defense, weights = Recipe(**params["recipe"]), defense_of(params), inputs.maybe(Table, "weights")
    channels, height, width = params["shape"]
    shape, goals = (channels, height, width), torch.tensor([params["classes"] - 1])
    plain = victim.plain_start(recipe, shape, params["classes"], weights.values if weights else None)
    victim.check_fits(plain, plain.build(), torch.zeros(1, *shape), goals)
    keys = draw_keys(defense, params["key_scope"], 2, shape, spawn(rng), params["clients"])
    model = victim.adapted(plain, defense, keys)
    net = model.build()
    if defense.partnered:
        images = Images(torch.rand(2, *shape, generator=rng), torch.zeros(2, dtype=torch.int64), torch.arange(2))
        shown = defense.protect(images, keys, spawn(rng)).images
        if shown.ndim == 4 and shown.dtype == torch.float32:  # what else is wrong with a release is told of the release
            victim.check_fits(model, net, shown, goals)
    return Made(None)


def make_victim(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Train the victim on the release; with a training attack, under its hand."""
    start, protected = inputs.load(Model, "start"), inputs.load(Protected, "release")
    recipe, release = Recipe(**params["recipe"]), protected.release
    attack = attack_of(params) if params.get("ref") else None
    training, acting = spawn(rng), spawn(rng)  # the honest victim sees the same minibatches
    lessons, penalty = _lessons(inputs, params, release), None
    owner = _owner(inputs.maybe(Clients, "clients"), release)
    if isinstance(attack, TrainingAttack):
        penalty = attack.penalty(release, start.build(), acting)
        classes = classes_of(start, release)
        more = attack.more(release, classes, acting)
        if more is not None:
            check_more(more, release, classes)
            lessons = _with_more(lessons, more, owner)
    model, warning = victim.teach(start, lessons, recipe, training, penalty=penalty, owner=owner,
                                  until=params["until"], shield=_shield(params, spawn(rng)))
    if isinstance(attack, TrainingAttack):
        assert model.state is not None
        hidden = attack.finish(release, dict(model.state), acting)
        model = replace(model, state=_checked_state(hidden, model.state))
    accuracy = victim.accuracy(model, protected.queries, protected.query_labels)
    defense = defense_of(params["shield"]) if "shield" in params else None
    times = recipe.rounds if recipe.clients > 1 else recipe.passes(len(release))  # an image is in one update each
    guaranteed = {"epsilon_update": defense.epsilon(1) if defense else None,
                  "epsilon_training": defense.epsilon(times) if defense and not _counts(model) else None}
    return Made(Trained(model, accuracy), {"accuracy": accuracy, "warning": warning} | guaranteed)


def make_update(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Compute what the clients send to a federated server for the targets' released images."""
    protected, model = inputs.load(Protected, "release"), model_at(inputs)
    threat, targets = threat_of(params), params["targets"]
    release = protected.release
    lesson = lesson_of(release)[torch.arange(targets)]
    update = client_update(model, lesson.images, lesson.goals, batch=threat.batch, local_steps=threat.local_steps,
                           learning_rate=threat.learning_rate, bn_train=threat.bn_train,
                           label_smoothing=params["label_smoothing"], temperature=lesson.temperature)
    return Made(defense_of(params).protect_update(update, spawn(rng)))


def _lessons(inputs: Inputs, params: dict[str, Any], release: Release) -> Lessons:
    """Return the release for every epoch or, where clients protect anew, their images and keys."""
    recipe = Recipe(**params["recipe"])
    if not recipe.renews or release.source is None:
        return Same(lesson_of(release), recipe.augment)  # images that stand for nobody may be augmented by anybody
    return Renewed(inputs.load(Split, "split").private, defense_of(params), inputs.load(Keyring, "keys").private,
                   params["key_scope"], params["quantise"], recipe.augment)


def classes_of(model: Model, release: Release) -> int:
    """Return how many classes a network tells apart.

    Raises:
        UserError: it does not take the released images.
    """
    net = model.build().eval()
    victim.check_fits(model, net, release.images, lesson_of(release).goals)
    with torch.no_grad():
        return int(net(release.images[:1]).shape[1])


def _with_more(lessons: Lessons, more: Images, owner: Tensor | None) -> Lessons:
    """Let a malicious trainer add images to every lesson.

    Raises:
        UserError: it has no lessons of its own, as clients train.
    """
    if owner is not None:
        raise UserError("the attack adds images to the training set, which only a central trainer can: set clients = 1 "
                        "in its victim")
    return Extended(lessons, more)


def _shield(params: dict[str, Any], rng: torch.Generator) -> Shield | None:
    """Return what protects the updates from which a victim learns; its draws depend on an update's number alone."""
    if "shield" not in params:
        return None
    defense, seed = defense_of(params["shield"]), int(torch.randint(2**62, (), generator=rng))
    return lambda update, number: defense.protect_update(update, generator(derive_seed(seed, number)))


def _counts(model: Model) -> bool:
    """Say whether training tells more of its images than updates do: running statistics, which no defense protects."""
    return any(value.is_floating_point() for name, value in model.build().named_buffers() if "running_" in name)


def _owner(clients: Clients | None, release: Release) -> Tensor | None:
    if clients is None:
        return None
    if release.source is None:
        raise UserError("the defense releases images that no client holds, so that there is nothing to train on in a "
                        "federation: set clients = 1 in its victim")
    return clients.private[release.source]


def _changed(model: Model, plain: Model) -> str:
    """Say what the defense changed in the network that its victim starts from: nothing, weights, or layers."""
    if (model.factory, model.kwargs) != (plain.factory, plain.kwargs):
        return "layers"
    before, after = plain.state or {}, model.state or {}
    return "no" if all(torch.equal(value, after[name]) for name, value in before.items()) else "weights"


def _checked_state(state: Tensors, before: Tensors) -> Tensors:
    if set(state) != set(before):
        raise ContractError("finish() must return a state with the names it was given")
    for name, tensor in state.items():
        if tensor.shape != before[name].shape:
            raise ContractError(f"finish() must keep the shape of {name!r}")
    return state


def model_at(inputs: Inputs) -> Model:
    """Return the weights a threat model speaks of: trained ones where they are among the inputs."""
    trained = inputs.maybe(Trained, "victim")
    return trained.model if trained else inputs.load(Model, "start")
