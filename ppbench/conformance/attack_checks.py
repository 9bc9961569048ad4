"""The checks of an attack, in the order in which a reader wants them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial

import torch

from ppbench import codec
from ppbench.attack import CraftingAttack, Prior, TrainingAttack, check_crafted, check_more, check_outcome
from ppbench.codec import Tensors
from ppbench.conformance.attack_bench import AttackBench
from ppbench.conformance.declaration import attack_declaration
from ppbench.conformance.findings import Check, Skipped, sentence
from ppbench.conformance.scenes import VIT, Scene
from ppbench.conformance.trial import ONE, OTHER, attempt, dependence, disturbance
from ppbench.data import Images
from ppbench.defense import Release
from ppbench.errors import ContractError, NotApplicable, NotGranted
from ppbench.model import Model
from ppbench.stages.attacking import describe_prior
from ppbench.stages.learning import classes_of
from ppbench.threat import CAPABILITIES
from ppbench.view import PARTS, Sealed, View

SCENES: dict[str, Scene] = {
    "grey": Scene("grey images", (1, 32, 32)),
    "non-square": Scene("images of 32 x 24 pixels", (3, 32, 24)),
    "one target": Scene("a single target", targets=1),
    "smaller release": Scene("a release of half the side (mixup)", defense="mixup"),
    "global key": Scene("a release under one key (block-scrambling)", defense="block-scrambling"),
    "key an image": Scene("a release with a key an image (patch-shuffle)", defense="patch-shuffle"),
    "no partners": Scene("a release without partners (bn-synthesis)",
                         defense="bn-synthesis,steps=1,teacher_epochs=1"),
}
KINDS: dict[str, tuple[str, Scene]] = {
    "single gradients": ("gradients", Scene("one gradient a target", settings={"batch": 1})),
    "uneven batches": ("gradients", Scene("gradients of 3 targets and of 1", settings={"batch": 3})),
    "local steps": ("gradients", Scene("updates of two local steps", settings={"local_steps": 2})),
    "trained weights": ("gradients", Scene("gradients at the last round", settings={"round": "last"})),
    "vision transformer": ("model", Scene("the weights of a vision transformer", victim=VIT)),
    "one pair": ("pairs", Scene("a single known pair", settings={"pairs": 1})),
}


def declaration(bench: AttackBench) -> Iterator[str]:
    """Check what the class says of itself."""
    return attack_declaration(bench.attack, bench.subject.ref.name)


def contract(bench: AttackBench) -> Iterator[str]:
    """Check the result on plain colour images."""
    try:
        view, trial = bench.main
    except NotApplicable as reason:
        yield f"it is not applicable to the defense none ({reason}): give a fallback there, with a note"
        return
    check_outcome(trial.value, view, bench.accuses)
    if not trial.digest:
        yield f"its {type(trial.value).__name__} holds what cannot be stored: keep to tensors, text and numbers"


def capabilities(bench: AttackBench) -> Iterator[str]:
    """Run the attack on a view that holds what it requires and nothing else."""
    try:
        bench.run(bench.view().only(frozenset(bench.attack.requires)))
    except NotGranted as error:
        named = re.search("'([a-z]+)'", str(error))
        capability = named.group(1) if named else "something"
        yield f"it reads {capability!r}, which it does not declare: add {capability!r} to `requires`"
    except (Exception, SystemExit) as error:
        yield (f"where the view holds nothing but `requires` {sentence(error)}: ask `view.granted` before reading "
               "what is optional")


def deterministic(bench: AttackBench) -> Iterator[str]:
    """Run the attack again with the same generator while the global ones are seeded differently."""
    (_, one), view = bench.main, bench.view()
    learnt = bench.priors(view)
    return dependence(lambda rng: bench.attack.run(view, learnt, rng), one, bench.again)


def shared_state(bench: AttackBench) -> Iterator[str]:
    """See that what all share is left as it was."""
    return disturbance(bench.main[1], bench.again)


def view_untouched(bench: AttackBench) -> Iterator[str]:
    """Compare the view before and after."""
    before, after = bench.view(), bench.main[0]
    parts = {part: name for name, those in PARTS.items() for part in those}
    for field in fields(Sealed):
        if _digest(before, field.name) != _digest(after, field.name):
            what = parts.get(field.name, field.name)
            yield f"it changes the view's {field.name!r} ({what}) in place: clone before writing"


def priors(bench: AttackBench) -> Iterator[str]:
    """Check what the attack wants learnt, and that learning is deterministic."""
    view = bench.view()
    wanted, again = bench.attack.priors(view), bench.attack.priors(view)
    if not wanted:
        raise Skipped("it has none")
    for name, prior in wanted.items():
        described = describe_prior(prior, view)
        if name not in again or described != describe_prior(again[name], view):
            yield f"priors() names {name!r} differently when it is asked again: let it depend on the view alone"
        yield from (f"the prior {name!r}: {finding}" for finding in _learning(prior, view))


def training(bench: AttackBench) -> Iterator[str]:
    """Check what a training attack adds to the loss and what it does to the weights."""
    attack = bench.attack
    if not isinstance(attack, TrainingAttack):
        raise Skipped("it does not act in training")
    release, model = bench.trained_on()
    assert model.state is not None
    before, state = codec.digest(release), model.state
    net = model.build()
    yield from _more(attack, release, model)
    penalty = attempt(lambda rng: {"loss": _penalty(attack.penalty(release, net, rng), net)}).value["loss"]
    if isinstance(penalty, str):
        yield penalty
    elif penalty is not None and (penalty.ndim or not penalty.isfinite()):
        yield f"penalty() gives {penalty.tolist()}: it must be one finite number"
    one, other = (attempt(lambda rng: attack.finish(release, _copy(state), rng), shared) for shared in (ONE, OTHER))
    yield from _weights(one.value, state)
    yield from (f"finish(): {found}" for found in
                dependence(lambda rng: attack.finish(release, _copy(state), rng), one, other))
    yield from (f"finish(): {found}" for found in disturbance(one, other))
    if codec.digest(release) != before:
        yield "it changes the release in place while it trains: clone before writing"


def crafting(bench: AttackBench) -> Iterator[str]:
    """Check the model that the attack hands out to clients."""
    attack = bench.attack
    if not isinstance(attack, CraftingAttack):
        raise Skipped("it crafts no model")
    view = bench.before()
    before = codec.digest(view.sealed)
    one, other = (attempt(lambda rng: attack.craft(view, rng), shared) for shared in (ONE, OTHER))
    try:
        check_crafted(one.value, view)
    except ContractError as error:
        yield str(error)
        return
    yield from (f"craft(): {found}" for found in dependence(lambda rng: attack.craft(view, rng), one, other))
    yield from (f"craft(): {found}" for found in disturbance(one, other))
    if codec.digest(view.sealed) != before:
        yield "craft() changes the view in place: clone before writing"


def queries(bench: AttackBench) -> Iterator[str]:
    """Check the images that the attack wants protected."""
    if "oracle" not in bench.attack.requires | bench.attack.uses:
        raise Skipped("it asks no oracle")
    view = bench.view().only(frozenset(bench.attack.requires))
    asked, again = bench.attack.queries(view), bench.attack.queries(view)
    if len(asked) == 0 and "oracle" in bench.attack.requires:
        yield "it requires 'oracle' but asks nothing: write queries()"
    if not torch.equal(asked, again):
        yield "queries() gives other images when it is asked again: let them depend on the view alone"


def in_scene(bench: AttackBench, scene: Scene) -> Iterator[str]:
    """Run the attack in another scene."""
    try:
        view = bench.view(scene)
        found = bench.run(view).value
        check_outcome(found, view, bench.accuses)
    except NotApplicable as reason:
        raise Skipped(f"not applicable to {scene.title}: {reason}") from None
    except (Exception, SystemExit) as error:
        yield f"on {scene.title} {sentence(error)}: let it handle them, or raise NotApplicable with the reason"


def with_kind(bench: AttackBench, capability: str, scene: Scene) -> Iterator[str]:
    """Run the attack on another kind of what it requires or uses."""
    if capability not in bench.attack.requires | bench.attack.uses:
        raise Skipped(f"it does not use {capability!r}")
    return in_scene(bench, scene)


CHECKS: Mapping[str, Check[AttackBench]] = {
    "declaration": declaration, "training": training, "crafting": crafting, "queries": queries, "contract": contract,
    "capabilities": capabilities, "deterministic": deterministic, "shared state": shared_state,
    "view untouched": view_untouched, "priors": priors,
    **{name: partial(in_scene, scene=scene) for name, scene in SCENES.items()},
    **{name: partial(with_kind, capability=capability, scene=scene) for name, (capability, scene) in KINDS.items()},
}


def _digest(view: View, part: str) -> str:
    value = getattr(view.sealed, part)
    return codec.digest({"value": value})


def _learning(prior: Prior, view: View) -> Iterator[str]:
    for capability in sorted(prior.needs - CAPABILITIES):
        yield f"`needs` names the unknown capability {capability!r}: correct it"
    one, other = (attempt(lambda rng: prior.train(prior.seen(view), rng), shared) for shared in (ONE, OTHER))
    value = one.value
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        yield f"train() gives a {type(value).__name__}: return tensors by name"
    yield from dependence(lambda rng: prior.train(prior.seen(view), rng), one, other)
    yield from disturbance(one, other)


def _more(attack: TrainingAttack, release: Release, model: Model) -> Iterator[str]:
    classes = classes_of(model, release)

    def asked(rng: torch.Generator) -> dict[str, Images | None]:
        return {"more": attack.more(release, classes, rng)}

    one, other = (attempt(asked, shared) for shared in (ONE, OTHER))
    if one.value["more"] is not None:
        try:
            check_more(one.value["more"], release, classes)
        except ContractError as error:
            yield str(error)
    yield from (f"more(): {found}" for found in dependence(asked, one, other))
    yield from (f"more(): {found}" for found in disturbance(one, other))


def _penalty(penalty: object, net: torch.nn.Module) -> torch.Tensor | str | None:
    if penalty is None:
        return None
    if not callable(penalty):
        return f"penalty() gives a {type(penalty).__name__}: return a function of the network, or None"
    found = penalty(net)
    if not isinstance(found, torch.Tensor) or not found.requires_grad:
        return "what penalty() returns gives no tensor that depends on the network's weights: compute it from them"
    return found


def _weights(found: object, before: Tensors) -> Iterator[str]:
    if not isinstance(found, dict):
        yield f"finish() gives a {type(found).__name__}: return the weights by name"
        return
    for name in sorted(before.keys() - found.keys()):
        yield f"finish() drops the weights {name!r}: return all names that it was given"
    for name in sorted(found.keys() - before.keys()):
        yield f"finish() adds the weights {name!r}: return only the names that it was given"
    for name in sorted(found.keys() & before.keys()):
        if found[name].shape != before[name].shape or found[name].dtype != before[name].dtype:
            yield (f"finish() turns {name!r} from {_kind(before[name])} into {_kind(found[name])}: keep shape and "
                   "dtype")
            return
        if not torch.isfinite(found[name]).all():
            yield f"finish() puts values into {name!r} that are not finite: write numbers"
            return


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _copy(state: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in state.items()}
