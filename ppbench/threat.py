"""Threat models: named sets of capabilities, and the view that each one grants."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ppbench.view import PARTS, Capability, Sealed, without_labels

CAPABILITIES: frozenset[Capability] = frozenset(PARTS)  # type: ignore[arg-type]
EVERYTHING = CAPABILITIES - {"candidates"}
"""All that can be known of images; candidates are for whoever asks another question: whose were used."""
_CIPHERTEXT: frozenset[Capability] = frozenset({"images", "labels", "public", "algorithm"})
_FEDERATED: frozenset[Capability] = frozenset({"public", "algorithm", "model", "gradients"})


@dataclass(frozen=True)
class ThreatModel:
    """What the adversary sees and knows.

    Attributes:
        name: as it stands in the row.
        grants: the capabilities.
        pairs: how many known pairs (`pairs`); "all" = every public image.
        queries: how many images the adversary may name (`oracle`).
        batch: targets in one gradient (`gradients`); the targets are cut into batches in their order.
        round: where gradients are taken: at the public `first` weights, at the `last`, trained ones, or at those after
            so many rounds (victims that are trained centrally: epochs).
        local_steps: a client's steps before it sends its update; 1 = the plain gradient.
        learning_rate: a client's, for several local steps.
        bn_train: whether batch normalisation runs in train mode on the client.
    """

    name: str
    grants: frozenset[Capability]
    pairs: int | Literal["all"] = 16
    queries: int = 16
    batch: int = 8
    round: Literal["first", "last"] | int = "first"
    local_steps: int = 1
    learning_rate: float = 0.01
    bn_train: bool = False

    def __post_init__(self) -> None:
        if self.pairs != "all" and self.pairs < 1:
            raise ValueError(f"pairs is {self.pairs}; it must be at least 1, or \"all\"")
        if min(self.batch, self.local_steps, self.queries) < 1:
            raise ValueError("batch, local_steps and queries must be at least 1")
        if isinstance(self.round, int) and self.round < 1:
            raise ValueError(f"round is {self.round}; it must be \"first\", \"last\" or a number from 1 upwards")

    def missing(self, requires: frozenset[Capability]) -> list[Capability]:
        """Return the required capabilities that are not granted, sorted."""
        return sorted(requires - self.grants)

    def settings(self) -> dict[str, Any]:
        """Return what tells this threat model from others, as JSON values: the capabilities and what they use."""
        used = {"pairs": ("pairs",), "oracle": ("queries",),
                "gradients": ("batch", "round", "local_steps", "learning_rate", "bn_train")}
        names = [name for capability, those in used.items() if capability in self.grants for name in those]
        return {"grants": sorted(self.grants), **{name: getattr(self, name) for name in names}}


NAMED: Mapping[str, ThreatModel] = {threat.name: threat for threat in (
    ThreatModel("ciphertext-only", _CIPHERTEXT),
    ThreatModel("known-plaintext", _CIPHERTEXT | {"pairs"}),
    ThreatModel("known-plaintext-all", _CIPHERTEXT | {"pairs"}, pairs="all"),
    ThreatModel("chosen-plaintext", _CIPHERTEXT | {"oracle"}),
    ThreatModel("white-box", _CIPHERTEXT | {"model"}),
    ThreatModel("federated-server", _FEDERATED),
    ThreatModel("malicious-server", _FEDERATED | {"server"}),
    ThreatModel("malicious-trainer", frozenset({"public", "algorithm", "model", "training"})),
    ThreatModel("membership-inference", frozenset({"public", "algorithm", "model", "candidates"})),
    ThreatModel("full-knowledge", EVERYTHING),
)}

SETTINGS = tuple(field.name for field in fields(ThreatModel) if field.name not in ("name", "grants"))


def derived(name: str, base: ThreatModel, settings: Mapping[str, Any]) -> ThreatModel:
    """Return a threat model with the capabilities of `base` and settings of its own."""
    return replace(base, name=name, **settings)


def grant(everything: Sealed, threat: ThreatModel) -> Sealed:
    """Cut what there is down to what the threat model grants: the one door to an attack."""
    taken = {part: None for capability, parts in PARTS.items() if capability not in threat.grants for part in parts}
    return without_labels(replace(everything, granted=frozenset(threat.grants), **taken))  # type: ignore[arg-type]
