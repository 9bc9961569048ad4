"""From a data set to a release: the split, who holds what, keys, protection."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ppbench import codec
from ppbench.data import Dataset, Halving, Shape, Split, SplitSizes, split
from ppbench.defense import Defense, Guarantee, Keys, Pieces, Release, draw_keys, keys_for_more, on_cpu
from ppbench.device import device
from ppbench.errors import ContractError, UserError
from ppbench.federated import deal
from ppbench.halving import halve
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import spawn
from ppbench.stages.values import Clients, Inputs, Keyring, Made, Protected, defense_of
from ppbench.view import quantised


def make_split(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Load a data set and split it."""
    ref = Ref.from_json(params["ref"])
    dataset: Dataset = build(ref)
    try:
        found = split(dataset.pools(params["size"]), SplitSizes(**params["sizes"]), params["seed"])
    except ContractError as error:
        raise UserError(f"the data set {ref.name}: {error}") from error
    return Made(found, _facts(found))


def _facts(found: Split) -> dict[str, Any]:
    private = torch.cat([found.private.labels, found.test.labels])
    return {"shape": list(found.private.shape), "classes": found.classes,
            "public_classes": len(found.public.labels.unique()), "private_classes": len(private.unique())}


def halve_split(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Keep one half of the private images from the defense."""
    whole = inputs.load(Split, "split")
    if params["canaries"] and whole.classes < 2:
        raise UserError("canaries bear the label of another class, but there is only one: set canaries = 0")
    found = halve(whole, Halving(**params), rng)
    return Made(found, _facts(found))


def make_clients(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Deal the images to clients."""
    images, count = inputs.load(Split, "split"), params["clients"]
    private = deal(images.private.labels, count, params["skew"], rng, params["fewest"])
    return Made(Clients(private, torch.randperm(len(images.test), generator=rng) % count))


def make_keys(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Draw the keys of a defense."""
    images = inputs.load(Split, "split")
    defense, scope = defense_of(params), params["key_scope"]
    shape, clients = images.private.shape, inputs.maybe(Clients, "clients")
    private = draw_keys(defense, scope, len(images.private), shape, spawn(rng), params["clients"],
                        clients.private if clients else None)
    if clients is not None and private is not None:
        return Made(Keyring(private, Keys(private.values, clients.test)))
    return Made(Keyring(private, keys_for_more(defense, private, scope, len(images.test), shape, spawn(rng))))


def make_release(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Protect the private images, and the test images as a client would send them."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    defense = defense_of(params)
    empty = [label for label in range(images.classes) if not (images.private.labels == label).any()]
    if empty and not defense.partnered:
        raise UserError(f"class {empty[0]} has no private image to make any from ({len(empty)} of {images.classes} "
                        "classes): raise private")
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
    return Made(Protected(release, queries, images.test.labels),
                {"released_shape": list(release.shape), "pieces": _pieces(defense, images.private.shape),
                 "guarantee": _guarantee(defense, len(images.private))})


def _guarantee(defense: Defense, private: int) -> dict[str, float]:
    found: object = defense.guarantee(private)
    if found is not None and not isinstance(found, Guarantee):
        raise ContractError(f"guarantee() returned a {type(found).__name__}; it must return a Guarantee, or None")
    return {"epsilon_release": found.epsilon, "delta_release": found.delta} if found else {}


def _pieces(defense: Defense, shape: Shape) -> dict[str, Any] | None:
    found: object = defense.pieces(shape)
    if found is not None and not isinstance(found, Pieces):
        raise ContractError(f"pieces() returned a {type(found).__name__}; it must return Pieces, or None")
    return asdict(found) if found else None


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
