"""The stages of a cell: small functions from stored inputs to one stored value, run wherever an engine likes.

`attack`, `queries`, `priors` and `prior` run a plug-in of the adversary's: the only data they are given is a view.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppbench import codec, victim
from ppbench.attack import Attack, Prior, Reconstruction, TrainingAttack, check_reconstruction
from ppbench.calibrate import BlindGuess, Guesses
from ppbench.codec import Tensors
from ppbench.data import Dataset, Images, Split, SplitSizes, split
from ppbench.defense import Defense, Keys, PerImageDefense, Release, draw_keys, keys_for_more, on_cpu
from ppbench.device import device
from ppbench.errors import ContractError, NotApplicable, UserError
from ppbench.federated import deal
from ppbench.judge import train_judge
from ppbench.lessons import Lessons, Renewed, Same, lesson_of
from ppbench.model import Model, Update
from ppbench.plugins import build, class_at
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.score import ScoreSettings, Truth, score
from ppbench.seeding import spawn
from ppbench.threat import ThreatModel, grant
from ppbench.updates import client_update
from ppbench.view import Algorithm, Pairs, Sealed, View, quantised
from ppbench.weights import published, read_weights

T = TypeVar("T")


class Inputs:
    """The stored inputs of a job, by name."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def load(self, kind: type[T], name: str) -> T:
        """Read an input."""
        return codec.load(kind, Path(self.files[name]))

    def maybe(self, kind: type[T], name: str) -> T | None:
        """Read an input that may not be there."""
        return self.load(kind, name) if name in self.files else None


@dataclass(frozen=True)
class Made:
    """What a stage made: a value to be stored (None = nothing) and small facts beside it."""

    value: Any
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clients:
    """Who holds each private and sends each test image, `[N]` int64."""

    private: Tensor
    test: Tensor


@dataclass(frozen=True)
class Keyring:
    """The keys of the private and of the test images."""

    private: Keys | None
    test: Keys | None


@dataclass(frozen=True)
class Protected:
    """What the victim is trained and tested on."""

    release: Release
    queries: Tensor
    query_labels: Tensor


@dataclass(frozen=True)
class Unprotected(PerImageDefense):
    """Images as they are: what the plain victim is trained on, beside which task accuracy stands."""

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        """Return the images unchanged."""
        return images


@dataclass(frozen=True)
class Trained:
    """A victim and its task accuracy on test images."""

    model: Model
    accuracy: float


@dataclass(frozen=True)
class Table:
    """Tensors by name, say a prior."""

    values: Tensors


def make_split(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Load a data set and split it."""
    ref = Ref.from_json(params["ref"])
    dataset: Dataset = build(ref)
    try:
        found = split(dataset.pools(params["size"]), SplitSizes(**params["sizes"]), params["seed"])
    except ContractError as error:
        raise UserError(f"the data set {ref.name}: {error}") from error
    return Made(found, {"shape": list(found.private.shape), "classes": found.classes})


def make_clients(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Deal the images to clients."""
    images, count = inputs.load(Split, "split"), params["clients"]
    private = deal(images.private.labels, count, params["skew"], rng)
    return Made(Clients(private, torch.randperm(len(images.test), generator=rng) % count))


def make_weights(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Read the weights that the victim starts from."""
    if "file" in params:
        return Made(Table(read_weights(Path(params["file"]["file"]))))
    return Made(Table(published(params["model"], params["kwargs"])))


def make_keys(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Draw the keys of a defense."""
    images = inputs.load(Split, "split")
    defense, scope = _defense(params), params["key_scope"]
    shape, clients = images.private.shape, inputs.maybe(Clients, "clients")
    private = draw_keys(defense, scope, len(images.private), shape, spawn(rng), params["clients"],
                        clients.private if clients else None)
    if clients is not None and private is not None:
        return Made(Keyring(private, Keys(private.values, clients.test)))
    return Made(Keyring(private, keys_for_more(defense, private, scope, len(images.test), shape, spawn(rng))))


def make_release(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Protect the private images, and the test images as a client would send them."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    defense = _defense(params)
    # What costs much to make (it has no partners) is made where the run computes.
    private = images.private if defense.partnered else images.private.to(device())
    release = defense.protect(private, keys.private, spawn(rng))
    release = on_cpu(release) if isinstance(release, Release) else release
    check_release(release, images, params["targets"])
    if defense.partnered != (release.source is not None):
        raise ContractError(f"the defense says partnered = {defense.partnered}, but its release has "
                            f"{'no ' if release.source is None else ''}partners (source): make the two agree")
    queries = defense.query(images.test.pixels, keys.test, spawn(rng))
    if params["quantise"] == 8:
        queries = codec.to_bytes8(queries)
    release = quantised(release, params["quantise"])
    if params["key_scope"] == "client" and keys.private is not None and release.source is not None:
        release = replace(release, clients=keys.private.owner[release.source])
    return Made(Protected(release, queries, images.test.labels), {"released_shape": list(release.shape)})


def check_release(release: object, images: Split, targets: int) -> None:
    """Hold a defense's result to the contract.

    Raises:
        ContractError: says in one sentence what is wrong.
    """
    if not isinstance(release, Release):
        raise ContractError(f"the defense returned a {type(release).__name__}; it must return a Release")
    if release.images.ndim != 4 or len(release.images) != len(release.labels):
        raise ContractError("the defense must release images [M, c, h, w] and as many labels")
    if release.soft_labels is not None:
        _check_soft_labels(release.soft_labels, len(release), images.classes)
    if len(release) < targets:
        raise ContractError(f"the defense released {len(release)} images for {targets} targets; it must release "
                            "at least as many")
    if not torch.isfinite(release.images).all() or release.images.min() < 0 or release.images.max() > 1:
        raise ContractError("the defense released values outside [0, 1]")
    if release.source is not None and not torch.equal(release.source[:targets], torch.arange(targets)):
        raise ContractError("released image i must come from private image i for the first images (the targets)")


def _check_soft_labels(shares: Tensor, count: int, classes: int) -> None:
    if shares.dtype != torch.float32:
        raise ContractError(f"soft_labels must be float32, not {shares.dtype}")
    if shares.ndim != 2 or len(shares) != count or shares.shape[1] > classes:
        raise ContractError(f"soft_labels must be [{count}, at most {classes}], not {list(shares.shape)}")
    if shares.min() < 0 or not torch.allclose(shares.sum(1), torch.ones(count), atol=1e-4):
        raise ContractError("soft_labels must be shares from 0 upwards that sum to 1 for every image")


def make_start(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Draw the victim's public starting weights, in the architecture for this defense."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    recipe, weights = Recipe(**params["recipe"]), inputs.maybe(Table, "weights")
    plain = victim.plain_start(recipe, images.private.shape, images.classes, weights.values if weights else None)
    model = victim.adapted(plain, _defense(params), keys.private)
    return Made(model, {"adapted": _changed(model, plain)})


def check_victim(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Hold the victim, plain and adapted, against plain and protected images of a shape.

    Where protection costs much, nothing is protected.

    Raises:
        UserError: they do not fit; says what would.
    """
    recipe, defense, weights = Recipe(**params["recipe"]), _defense(params), inputs.maybe(Table, "weights")
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
    attack = _attack(params) if params.get("ref") else None
    training, acting = spawn(rng), spawn(rng)  # the honest victim sees the same minibatches
    penalty = None
    if isinstance(attack, TrainingAttack):
        penalty = attack.penalty(release, start.build(), acting)
    model, warning = victim.teach(start, _lessons(inputs, params, release), recipe, training, penalty=penalty,
                                  owner=_owner(inputs.maybe(Clients, "clients"), release), until=params["until"])
    if isinstance(attack, TrainingAttack):
        assert model.state is not None
        hidden = attack.finish(release, dict(model.state), acting)
        model = replace(model, state=_checked_state(hidden, model.state))
    accuracy = victim.accuracy(model, protected.queries, protected.query_labels)
    return Made(Trained(model, accuracy), {"accuracy": accuracy, "warning": warning})


def _lessons(inputs: Inputs, params: dict[str, Any], release: Release) -> Lessons:
    """Return the release for every epoch or, where clients protect anew, their images and keys."""
    recipe = Recipe(**params["recipe"])
    if not recipe.renews or release.source is None:
        return Same(lesson_of(release), recipe.augment)  # images that stand for nobody may be augmented by anybody
    return Renewed(inputs.load(Split, "split").private, _defense(params), inputs.load(Keyring, "keys").private,
                   params["key_scope"], params["quantise"], recipe.augment)


def _owner(clients: Clients | None, release: Release) -> Tensor | None:
    if clients is None:
        return None
    if release.source is None:
        raise UserError("the defense releases images that no client holds, so that there is nothing to train on in a "
                        "federation: set clients = 1 in its victim")
    return clients.private[release.source]


def make_update(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Compute what the clients send to a federated server for the targets' released images."""
    protected, model = inputs.load(Protected, "release"), _model_at(inputs)
    threat, targets = _threat(params), params["targets"]
    release = protected.release
    update = client_update(model, release.images[:targets], lesson_of(release).goals[:targets], batch=threat.batch,
                           local_steps=threat.local_steps, learning_rate=threat.learning_rate,
                           bn_train=threat.bn_train)
    return Made(_defense(params).protect_update(update, spawn(rng)))


def make_pairs(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Protect public images with the victim's key; a defense whose release has no partners gives no pairs."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    wanted = _threat(params).pairs
    count = len(images.public) if wanted == "all" else min(wanted, len(images.public))
    count = count if _defense(params).partnered else 0
    plain = images.public[:count]
    mine = keys_for_more(_defense(params), keys.private, params["key_scope"], count, plain.shape, spawn(rng),
                         params["clients"])
    owner = mine.owner if mine is not None and params["key_scope"] == "client" else None
    return Made(Pairs(plain.pixels, _protected(plain, mine, params, rng), owner))


def make_queries(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Ask the attack which images the oracle is to protect."""
    view = View(inputs.load(Sealed, "view"))
    queries = _attack(params).queries(view)
    if queries.ndim != 4 or tuple(queries.shape[1:]) != view.image_shape:
        raise ContractError(f"queries must be images [q, {', '.join(map(str, view.image_shape))}], "
                            f"not {list(queries.shape)}")
    if len(queries) > params["most"]:
        raise ContractError(f"the attack named {len(queries)} images, but the threat model allows queries = "
                            f"{params['most']}: name fewer, or raise queries")
    return Made(Table({"queries": queries.clamp(0, 1)}))


def make_answers(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Protect the adversary's chosen images with the victim's key.

    Raises:
        NotApplicable: the defense releases no image for an image.
    """
    if not _defense(params).partnered:
        raise NotApplicable(f"{params['defense']['name']} releases no image of its own for an image: there is nothing "
                            "to ask an oracle")
    pixels, keys = inputs.load(Table, "queries").values["queries"], inputs.load(Keyring, "keys")
    rows = torch.arange(len(pixels))
    asked = Images(pixels, rows * 0, rows)
    mine = keys_for_more(_defense(params), keys.private, params["key_scope"], len(asked), asked.shape, spawn(rng),
                         params["clients"])
    if mine is not None and params["key_scope"] == "client":
        mine = Keys(mine.values, rows % params["clients"])
    return Made(Table({"answers": _protected(asked, mine, params, rng)}))


def make_view(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Build exactly what the threat model grants."""
    images, targets = inputs.load(Split, "split"), params["targets"]
    keys, protected = inputs.load(Keyring, "keys"), inputs.load(Protected, "release")
    algorithm = Algorithm(Ref.from_json(params["defense"]), params["key_scope"], params["quantise"],
                          params["clients"])
    answers = inputs.maybe(Table, "answers")
    everything = Sealed(
        granted=frozenset(), image_shape=images.private.shape, released_shape=protected.release.shape,
        n_targets=targets, classes=images.classes, labels=images.private.labels[:targets],
        release=protected.release, target_rows=torch.arange(targets), public=images.public, algorithm=algorithm,
        pairs=inputs.maybe(Pairs, "pairs"), answers=answers.values["answers"] if answers else None,
        model=_model_at(inputs) if "start" in inputs or "victim" in inputs else None,
        update=inputs.maybe(Update, "update"), keys=_keys_of_release(keys.private, protected.release))
    return Made(grant(everything, _threat(params)))


def make_public_view(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Build the view of somebody who has the public images and nothing else."""
    images = inputs.load(Split, "split")
    shape = images.private.shape
    sealed = Sealed(frozenset({"public"}), shape, shape, params["targets"], images.classes, public=images.public)
    return Made(sealed)


def make_inner_view(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Put an outer attack's estimate of the release in the place of the release."""
    view, found = View(inputs.load(Sealed, "view")), inputs.load(Reconstruction, "outer")
    if found.of != "released":
        raise ContractError("the outer attack of a chain must estimate the released images (of = \"released\")")
    labels = view.sealed.labels
    return Made(view.with_images(codec.to_bytes8(found.images),
                                 torch.full((len(found.images),), -1) if labels is None else labels).sealed)


def list_priors(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Ask an attack which priors it wants, and what each of them would be learnt from."""
    view = View(inputs.load(Sealed, "view"))
    wanted = _attack(params).priors(view)
    return Made(None, {"priors": {name: describe_prior(prior, view) for name, prior in wanted.items()}})


def describe_prior(prior: Any, view: View) -> dict[str, Any]:
    """Name a prior so that any process can make it: its class, parameters, needs and the digest of what it sees."""
    cls = type(prior)
    if not issubclass(cls, Prior) or "__dataclass_fields__" not in vars(cls):
        raise ContractError(f"priors() must give dataclasses derived from ppbench.attack.Prior, not {cls.__name__}")
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "params": asdict(prior),
            "sees": codec.digest(view.only(prior.needs).sealed)}


def describe_guess(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Describe the prior behind a floor, as an attack would that asked for the same."""
    view = View(inputs.load(Sealed, "view"))
    return Made(None, {"prior": describe_prior(BlindGuess(params["metric"], params["trunk"]), view)})


def train_prior(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Let an adversary learn what it uses in many cells."""
    ref = Ref.from_json(params["ref"]) if params.get("ref") else None
    prior: Prior = class_at(params["prior"]["class"], ref)(**params["prior"]["params"])
    view = View(inputs.load(Sealed, "view")).only(prior.needs)
    found = prior.train(view, rng)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ContractError(f"{type(prior).__name__}.train must return a dict of tensors by name, "
                            f"not a {type(found).__name__}")
    return Made(Table(found))


def run_attack(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Run an attack on its view."""
    view = View(inputs.load(Sealed, "view"))
    priors = {name.removeprefix("prior:"): inputs.load(Table, name).values
              for name in inputs.files if name.startswith("prior:")}
    found = _attack(params).run(view, priors, rng)
    check_reconstruction(found, view)
    return Made(replace(found, images=found.images.detach().float().clamp(0, 1)))


def make_judge(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Train the classifier by which `recognition` and `identification_feature` are measured."""
    images = inputs.load(Split, "split")
    return Made(Table(train_judge(images.public, images.classes, rng)))


def make_score(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Score a reconstruction against the private images."""
    images, protected = inputs.load(Split, "split"), inputs.load(Protected, "release")
    guesses = {name.removeprefix("guess:"): Guesses.from_tensors(inputs.load(Table, name).values)
               for name in inputs.files if name.startswith("guess:")}
    judge = inputs.maybe(Table, "judge")
    truth = Truth(images, protected.release, params["targets"], params["labels_known"], guesses,
                  judge.values if judge else None)
    return Made(score(truth, inputs.load(Reconstruction, "found"), inputs.maybe(Reconstruction, "outer"),
                      ScoreSettings(**params["settings"]), rng))


Stage = Callable[[Inputs, dict[str, Any], torch.Generator], Made]
STAGES: dict[str, Stage] = {
    "split": make_split, "clients": make_clients, "weights": make_weights, "keys": make_keys, "release": make_release,
    "start": make_start, "fits": check_victim, "victim": make_victim,
    "update": make_update, "pairs": make_pairs, "queries": make_queries, "answers": make_answers, "view": make_view,
    "public-view": make_public_view, "inner-view": make_inner_view, "priors": list_priors,
    "describe-guess": describe_guess, "prior": train_prior,
    "attack": run_attack, "judge": make_judge, "score": make_score,
}


def _defense(params: dict[str, Any]) -> Defense:
    if params["defense"] is None:
        return Unprotected()
    defense: Defense = build(Ref.from_json(params["defense"]))
    return defense


def _attack(params: dict[str, Any]) -> Attack:
    attack: Attack = build(Ref.from_json(params["ref"]))
    return attack


def _changed(model: Model, plain: Model) -> str:
    """Say what the defense changed in the network that its victim starts from: nothing, weights, or layers."""
    if (model.factory, model.kwargs) != (plain.factory, plain.kwargs):
        return "layers"
    before, after = plain.state or {}, model.state or {}
    return "no" if all(torch.equal(value, after[name]) for name, value in before.items()) else "weights"


def _threat(params: dict[str, Any]) -> ThreatModel:
    return ThreatModel(**{**params["threat"], "grants": frozenset(params["threat"]["grants"])})


def _model_at(inputs: Inputs) -> Model:
    """Return the weights a threat model speaks of: trained ones where they are among the inputs."""
    trained = inputs.maybe(Trained, "victim")
    return trained.model if trained else inputs.load(Model, "start")


def _keys_of_release(keys: Keys | None, release: Release) -> Keys | None:
    """Return the keys so that row i protects released image i (a release without partners has none)."""
    return keys[release.source] if keys is not None and release.source is not None else None


def _protected(images: Images, keys: Keys | None, params: dict[str, Any], rng: torch.Generator) -> Tensor:
    """Protect images as the victim's own were, row by row."""
    if not len(images):
        return images.pixels
    return quantised(_defense(params).protect(images, keys, spawn(rng)), params["quantise"]).images


def _checked_state(state: Tensors, before: Tensors) -> Tensors:
    if set(state) != set(before):
        raise ContractError("finish() must return a state with the names it was given")
    for name, tensor in state.items():
        if tensor.shape != before[name].shape:
            raise ContractError(f"finish() must keep the shape of {name!r}")
    return state
