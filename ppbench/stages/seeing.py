"""What an adversary gets: pairs, answers, views."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppbench import codec
from ppbench.attack import Reconstruction
from ppbench.data import Images, Split
from ppbench.defense import Keys, Release, keys_for_more
from ppbench.errors import ContractError, NotApplicable
from ppbench.halving import Lineup, lineup, suspects
from ppbench.model import Model, Update
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import spawn
from ppbench.stages.learning import model_at
from ppbench.stages.values import Inputs, Keyring, Made, Protected, Table, attack_of, defense_of, threat_of
from ppbench.threat import grant
from ppbench.view import Algorithm, Candidates, Pairs, Sealed, View, quantised


def make_pairs(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Protect public images with the victim's key; a defense whose release has no partners gives no pairs."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    wanted = threat_of(params).pairs
    count = len(images.public) if wanted == "all" else min(wanted, len(images.public))
    count = count if defense_of(params).partnered else 0
    plain = images.public[:count]
    mine = keys_for_more(defense_of(params), keys.private, params["key_scope"], count, plain.shape, spawn(rng),
                         params["clients"])
    owner = mine.owner if mine is not None and params["key_scope"] == "client" else None
    return Made(Pairs(plain.pixels, _protected(plain, mine, params, rng), owner))


def make_queries(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Ask the attack which images the oracle is to protect."""
    view = inputs.view()
    queries = attack_of(params).queries(view)
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
    pixels, keys = inputs.load(Table, "queries").values["queries"], inputs.load(Keyring, "keys")
    if not len(pixels):
        return Made(Table({"answers": pixels}))
    if not defense_of(params).partnered:
        raise NotApplicable(f"{params['defense']['name']} releases no image of its own for an image: there is nothing "
                            "to ask an oracle")
    rows = torch.arange(len(pixels))
    asked = Images(pixels, rows * 0, rows)
    mine = keys_for_more(defense_of(params), keys.private, params["key_scope"], len(asked), asked.shape, spawn(rng),
                         params["clients"])
    if mine is not None and params["key_scope"] == "client":
        mine = Keys(mine.values, rows % params["clients"])
    return Made(Table({"answers": _protected(asked, mine, params, rng)}))


def make_lineup(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Mix members with others."""
    return Made(lineup(inputs.load(Split, "whole"), inputs.load(Split, "split"), rng))


def make_candidates(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Protect members and others alike, as clients send images to the victim."""
    images, keys = inputs.load(Split, "split"), inputs.load(Keyring, "keys")
    found = suspects(images)[inputs.load(Lineup, "lineup").order]
    found = replace(found, ids=torch.arange(len(found)))
    sent, public = (_sent(those, keys.private, params, rng) for those in (found, images.public))
    return Made(Candidates(found, sent, public))


def make_view(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Build exactly what the threat model grants."""
    images, targets, threat = inputs.load(Split, "split"), params["targets"], threat_of(params)
    keys, protected = inputs.load(Keyring, "keys"), inputs.load(Protected, "release")
    algorithm = Algorithm(Ref.from_json(params["defense"]).without_places(), params["key_scope"], params["quantise"],
                          params["clients"])
    answers = inputs.maybe(Table, "answers")
    everything = Sealed(
        granted=frozenset(), image_shape=images.private.shape, released_shape=protected.release.shape,
        n_targets=targets, classes=images.classes, labels=images.private.labels[:targets],
        release=protected.release, target_rows=torch.arange(targets), public=images.public, algorithm=algorithm,
        pairs=inputs.maybe(Pairs, "pairs"), answers=answers.values["answers"] if answers else None,
        model=model_at(inputs) if "start" in inputs or "victim" in inputs else None,
        start=inputs.maybe(Model, "published"),
        update=inputs.maybe(Update, "update"), keys=_keys_of_release(keys.private, protected.release),
        n_queries=threat.queries if "oracle" in threat.grants else 0,
        candidates=inputs.maybe(Candidates, "candidates"),
        recipe=Recipe(**params["recipe"]) if "recipe" in params else None)
    return Made(grant(everything, threat))


def make_public_view(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Build the view of somebody who has the public images and nothing else."""
    images = inputs.load(Split, "split")
    shape = images.private.shape
    sealed = Sealed(frozenset({"public"}), shape, shape, params["targets"], images.classes, public=images.public)
    return Made(sealed)


def make_inner_view(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Put an outer attack's estimate of the release in the place of the release."""
    view, found = inputs.view(), inputs.load(Reconstruction, "outer")
    if found.of != "released":
        raise ContractError("the outer attack of a chain must estimate the released images (of = \"released\")")
    # what an oracle said was said to the outer attack's questions
    view = View(replace(view.sealed, granted=view.granted - {"oracle"}, answers=None))
    labels = view.sealed.labels
    return Made(view.with_images(codec.to_bytes8(found.images),
                                 torch.full((len(found.images),), -1) if labels is None else labels).sealed)


def _keys_of_release(keys: Keys | None, release: Release) -> Keys | None:
    """Return the keys so that row i protects released image i (a release without partners has none)."""
    return keys[release.source] if keys is not None and release.source is not None else None


def _sent(images: Images, keys: Keys | None, params: dict[str, Any], rng: torch.Generator) -> Tensor:
    """Protect images as the victim's clients do when they ask it."""
    defense = defense_of(params)
    mine = keys_for_more(defense, keys, params["key_scope"], len(images), images.shape, spawn(rng), params["clients"])
    found = defense.query(images.pixels, mine, spawn(rng))
    return codec.to_bytes8(found) if params["quantise"] == 8 else found


def _protected(images: Images, keys: Keys | None, params: dict[str, Any], rng: torch.Generator) -> Tensor:
    """Protect images as the victim's own were, row by row."""
    if not len(images):
        return images.pixels
    return quantised(defense_of(params).protect(images, keys, spawn(rng)), params["quantise"]).images
