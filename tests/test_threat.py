"""Threat models: what one does not grant does not survive the one door to an attack."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from full_view import everything, tensors_in

from ppbench import codec
from ppbench.describe import describe_threats
from ppbench.threat import CAPABILITIES, NAMED, SETTINGS, ThreatModel, derived, grant
from ppbench.view import PARTS, Sealed, View

OPEN = {"granted", "image_shape", "released_shape", "n_targets", "classes", "n_queries"}  # known to everyone
every_threat = pytest.mark.parametrize("threat", NAMED.values(), ids=NAMED)


def test_every_part_of_a_view_belongs_to_one_capability() -> None:
    parts = [part for those in PARTS.values() for part in those]
    assert sorted(parts) == sorted({field.name for field in fields(Sealed)} - OPEN)


@every_threat
def test_nothing_survives_that_is_not_granted(threat: ThreatModel) -> None:
    before = everything()
    after = grant(before, threat)
    assert after.granted == threat.grants
    for capability, parts in PARTS.items():
        for part in parts:
            kept = getattr(before, part) if capability in threat.grants else None
            assert getattr(after, part) is kept, part
    withheld = [tensor for capability, parts in PARTS.items() if capability not in threat.grants
                for part in parts for tensor in tensors_in(getattr(before, part))]
    handed = {id(tensor) for tensor in tensors_in(after)}
    assert not handed & {id(tensor) for tensor in withheld}
    # Nor by another way into the file that the attack's process is given.
    packed = codec.pack(after)[1].values()
    for tensor in withheld:
        assert not any(one.shape == tensor.shape and one.dtype == tensor.dtype and bool((one == tensor).all())
                       for one in packed if tensor.is_floating_point())


@every_threat
def test_granting_twice_is_granting_once(threat: ThreatModel) -> None:
    once = grant(everything(), threat)
    assert codec.dump(grant(once, threat)) == codec.dump(once)


@every_threat
@pytest.mark.parametrize("capability", sorted(CAPABILITIES))
def test_each_capability_can_be_withheld_alone(threat: ThreatModel, capability: str) -> None:
    less = replace(threat, grants=threat.grants - {capability})
    found = grant(everything(), less)
    assert all(getattr(found, part) is None for part in PARTS[capability])
    assert View(found).granted == less.grants


def test_a_threat_model_adds_no_data_that_is_not_there() -> None:
    poor = Sealed(frozenset(), (3, 8, 8), (3, 8, 8), 4, 3)
    found = grant(poor, NAMED["full-knowledge"])
    assert all(getattr(found, part) is None for parts in PARTS.values() for part in parts)


def test_named_threat_models_grant_what_the_design_says() -> None:
    base = {"images", "labels", "public", "algorithm"}
    assert {name: set(threat.grants) for name, threat in NAMED.items()} == {
        "ciphertext-only": base, "known-plaintext": base | {"pairs"}, "known-plaintext-all": base | {"pairs"},
        "chosen-plaintext": base | {"oracle"}, "white-box": base | {"model"},
        "federated-server": {"public", "algorithm", "model", "gradients"},
        "malicious-server": {"public", "algorithm", "model", "gradients", "server"},
        "malicious-trainer": {"public", "algorithm", "model", "training"},
        "full-knowledge": set(PARTS) - {"candidates"},
        "membership-inference": {"public", "algorithm", "model", "candidates"}}
    assert NAMED["known-plaintext-all"].pairs == "all"
    assert [one.name for one in describe_threats()] == list(NAMED)


@pytest.mark.parametrize(("name", "settings"), [
    ("ciphertext-only", set()), ("white-box", set()), ("chosen-plaintext", {"queries"}), ("known-plaintext", {"pairs"}),
    ("federated-server", {"batch", "round", "local_steps", "learning_rate", "bn_train"}),
    ("full-knowledge", set(SETTINGS))])
def test_settings_are_those_that_the_capabilities_use(name: str, settings: set[str]) -> None:
    found = NAMED[name].settings()
    assert set(found) == {"grants", *settings}
    assert found["grants"] == sorted(NAMED[name].grants)


def test_settings_that_are_not_used_change_nothing() -> None:
    base = NAMED["ciphertext-only"]
    assert derived("x", base, {"pairs": 3, "batch": 2}).settings() == base.settings()
    assert derived("x", NAMED["known-plaintext"], {"pairs": 3}).settings()["pairs"] == 3


def test_a_derived_threat_model_keeps_the_capabilities() -> None:
    found = derived("kp4", NAMED["known-plaintext"], {"pairs": 4})
    assert (found.name, found.pairs, found.grants) == ("kp4", 4, NAMED["known-plaintext"].grants)
    assert NAMED["known-plaintext"].pairs == 16


@pytest.mark.parametrize("settings", [{"pairs": 0}, {"pairs": -3}, {"batch": 0}, {"local_steps": 0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        derived("x", NAMED["full-knowledge"], settings)


def test_missing_capabilities_are_named() -> None:
    assert NAMED["ciphertext-only"].missing(frozenset({"images", "key", "gradients"})) == ["gradients", "key"]
    assert NAMED["full-knowledge"].missing(CAPABILITIES) == ["candidates"]


def test_withheld_labels_are_taken_out_of_the_release_too() -> None:
    before = everything()
    assert before.release is not None
    soft = replace(before, release=replace(before.release, soft_labels=torch.full((6, 3), 1 / 3)))
    threat = ThreatModel("mine", frozenset({"images"}))
    for after in (grant(soft, threat), View(soft).only(frozenset({"images"})).sealed):
        assert after.release is not None
        assert (after.release.labels == -1).all()
        assert after.release.soft_labels is None
    assert grant(soft, NAMED["ciphertext-only"]).release is soft.release
