"""What runs a plug-in of the adversary's: the only data it is given is a view."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ppbench import codec
from ppbench.attack import CraftingAttack, Membership, Prior, check_crafted, check_outcome
from ppbench.calibrate import BlindGuess
from ppbench.errors import ContractError
from ppbench.plugins import class_at
from ppbench.ref import Ref
from ppbench.stages.values import Inputs, Made, Table, attack_of
from ppbench.view import View


def list_priors(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Ask an attack which priors it wants, and what each of them would be learnt from."""
    view = inputs.view()
    wanted = attack_of(params).priors(view)
    return Made(None, {"priors": {name: describe_prior(prior, view) for name, prior in wanted.items()}})


def describe_prior(prior: Any, view: View) -> dict[str, Any]:
    """Name a prior so that any process can make it: its class, parameters and the digest of what it sees."""
    cls = type(prior)
    if not issubclass(cls, Prior) or "__dataclass_fields__" not in vars(cls):
        raise ContractError(f"priors() must give dataclasses derived from ppbench.attack.Prior, not {cls.__name__}")
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "params": asdict(prior),
            "sees": _digest(_cut(prior, view))}


def _cut(prior: Prior, view: View) -> View:
    """Return as much of a view as a prior says that it reads."""
    found: object = prior.seen(view)
    if not isinstance(found, View):
        raise ContractError(f"{type(prior).__name__}.seen must return a view, not a {type(found).__name__}")
    return found


def _digest(view: View) -> str:
    seen = view.sealed
    if seen.algorithm is not None:
        seen = replace(seen, algorithm=replace(seen.algorithm, ref=seen.algorithm.ref.without_places()))
    return codec.digest(seen)


def describe_guess(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Describe the prior behind a floor, as an attack would that asked for the same."""
    view = inputs.view()
    return Made(None, {"prior": describe_prior(BlindGuess(params["metric"], params["trunk"]), view)})


def train_prior(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Let an adversary learn what it uses in many cells."""
    ref = Ref.from_json(params["ref"]) if params.get("ref") else None
    prior: Prior = class_at(params["prior"]["class"], ref)(**params["prior"]["params"])
    view = _cut(prior, inputs.view())
    if _digest(view) != params["prior"]["sees"]:  # cells share what is learnt by this digest
        raise ContractError(f"{type(prior).__name__}.seen cuts the same view differently each time: let it depend on "
                            "the view and the parameters alone")
    found = prior.train(view, rng)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ContractError(f"{type(prior).__name__}.train must return a dict of tensors by name, "
                            f"not a {type(found).__name__}")
    return Made(Table(found))


def craft_model(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Let a malicious server make the model that clients get."""
    view, attack = inputs.view(), attack_of(params)
    assert isinstance(attack, CraftingAttack)
    found = attack.craft(view, rng)
    check_crafted(found, view)
    return Made(found)


def run_attack(inputs: Inputs, params: dict[str, Any], rng: torch.Generator) -> Made:
    """Run an attack on its view."""
    view = inputs.view()
    priors = {name.removeprefix("prior:"): inputs.load(Table, name).values
              for name in inputs.files if name.startswith("prior:")}
    attack = attack_of(params)
    found = attack.run(view, priors, rng)
    check_outcome(found, view, "candidates" in attack.requires)
    if isinstance(found, Membership):
        return Made(replace(found, scores=found.scores.detach().double()))
    return Made(replace(found, images=found.images.detach().float().clamp(0, 1)))
