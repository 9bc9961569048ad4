"""The data flow of a run: who needs what. Each artefact is made once, however many cells ask for it."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ppbench import codec
from ppbench.data import Shape
from ppbench.engine.job import Engine, Job, Limits, Status
from ppbench.matching import Link, order_of
from ppbench.partial import read_progress
from ppbench.plan import Cell, DatasetPlan, DefensePlan, Plan, network_code
from ppbench.plugins import is_file
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import derive_seed
from ppbench.sources import code_digest
from ppbench.store import Artefact, Store, json_digest
from ppbench.threat import ThreatModel

GUESSED = ("ssim", "lpips", "identification")
PLAIN: dict[str, Any] = {"defense": None, "key_scope": None, "quantise": 8, "clients": 1}


class StageFailed(Exception):
    """A stage that a cell needs has no value."""

    def __init__(self, stage: str, status: Status, reason: str, log: str) -> None:
        super().__init__(reason)
        self.stage, self.status, self.reason, self.log = stage, status, reason, log


@dataclass(frozen=True)
class Step:
    """One artefact to be made.

    Attributes:
        kind: folder of the store.
        stage: function in `ppbench.stages`.
        inputs: name -> artefact.
        params: JSON values.
        seed: names the component that draws, and nothing else, so that adding a cell changes no other.
        code: digests of the plug-ins that act.
        places: a component whose files the stage may need; where they lie is no part of what is made.
    """

    kind: str
    stage: str
    inputs: Mapping[str, Artefact]
    params: Mapping[str, Any]
    seed: int
    code: tuple[str, ...] = ()
    places: Ref | None = None


@dataclass(frozen=True)
class Attacked:
    """What an attack came to.

    Attributes:
        reconstruction: of the targets.
        learning: seconds that its priors took to train, whoever in this store trained them.
        seconds: that it took itself.
        outer: in a chain, the outer attack's estimate of the release.
    """

    reconstruction: Artefact
    learning: float
    seconds: float
    outer: Artefact | None = None


class Flow:
    """Makes artefacts on demand, from the store or by the engine, never the same one twice."""

    def __init__(self, plan: Plan, store: Store, engine: Engine, files: Mapping[str, str]) -> None:
        self.plan = plan
        self.store = store
        self.engine = engine
        self.files = files
        self.computed: dict[str, int] = {}
        self.running: dict[str, tuple[str, Path]] = {}
        self._made: dict[str, asyncio.Task[Artefact]] = {}

    def now(self) -> str:
        """Say what runs, and how far those are that say so."""
        counts: dict[str, int] = {}
        for kind, folder in list(self.running.values()):
            said = read_progress(folder)
            counts[f"{kind} {said}".rstrip()] = counts.get(f"{kind} {said}".rstrip(), 0) + 1
        return ", ".join(what if n == 1 else f"{n} {what}" for what, n in counts.items())

    async def make(self, step: Step) -> Artefact:
        """Return the artefact of a step.

        Raises:
            StageFailed: it has no value; the reason is the same for all who ask.
        """
        key = json_digest([step.kind, step.stage, {name: found.sha256 for name, found in step.inputs.items()},
                           _identity(step.params), step.seed, step.code, self.plan.limits.threads,
                           self.plan.environment])[:32]
        return await self._shared(step, key)

    async def _shared(self, step: Step, key: str) -> Artefact:
        """Wait for an artefact that another cell may be waiting for as well."""
        if key not in self._made:
            task = asyncio.ensure_future(self._find_or_run(step, key))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask
            self._made[key] = task
        return await asyncio.shield(self._made[key])

    async def _find_or_run(self, step: Step, key: str) -> Artefact:
        found = self.store.find(step.kind, key)
        if found is not None:
            return found
        limits, partial = self.plan.limits, self.store.partial(step.kind, key)
        with self.store.scratch() as scratch:
            job = Job(step.stage, {name: str(found.path) for name, found in step.inputs.items()}, dict(step.params),
                      step.seed, Limits(limits.seconds, limits.memory_mib, limits.threads),
                      str(scratch / "output.safetensors"), str(scratch / "log.txt"), self.plan.device, str(partial),
                      self._ref(step.places) if step.places else None)
            self.running[key] = (step.kind, partial)
            try:
                outcome = await self.engine.run(job)
            finally:
                del self.running[key]
            log = scratch / "log.txt"
            if outcome.status != "ok":
                text = log.read_text(errors="replace") if log.exists() else ""
                raise StageFailed(step.stage, outcome.status, outcome.reason, text)
            self.computed[step.kind] = self.computed.get(step.kind, 0) + 1
            output = scratch / "output.safetensors"
            output.touch()  # stages that only report facts write none
            return self.store.publish(step.kind, key, output, outcome.info, outcome.seconds)

    async def fits(self, cell: Cell, shape: Shape, classes: int) -> Artefact:
        """Hold the victim, as the defense adapts it, against images of a shape.

        Raises:
            StageFailed: `bad-input` where they do not fit.
        """
        inputs = {"weights": await self._weights(cell.victim)} if cell.victim.given else {}
        params = {**self._deployed(cell.defense), "recipe": cell.victim.architecture(), "shape": shape,
                  "classes": classes}
        return await self.make(Step("fits", "fits", inputs, params, 0, self._built(cell, cell.defense)))

    # --- what a data set and a defense need

    async def split(self, dataset: DatasetPlan, seed: int) -> Artefact:
        """Private, public and test images; where they are halved, of one half."""
        if dataset.halving is not None:
            whole = await self.split(dataset.whole, seed)
            halving = asdict(dataset.halving)
            return await self.make(Step("split", "halve", {"split": whole}, halving, derive_seed(seed, "halve")))
        return await self.loaded(dataset, seed)

    async def loaded(self, dataset: DatasetPlan, seed: int) -> Artefact:
        """The images of a data set that is not halved."""
        params = {"ref": self._ref(dataset.ref), "size": dataset.size, "sizes": dataset.sizes.described(),
                  "seed": derive_seed(seed, "split", dataset.ref.identity), "content": dataset.content}
        return await self.make(Step("split", "split", {}, params, 0, (dataset.ref.code,)))

    async def clients(self, cell: Cell) -> Artefact:
        """Who holds which image: the same for every defense."""
        inputs = {"split": await self.split(cell.dataset, cell.seed)}
        params = {"clients": max(cell.victim.clients, cell.defense.clients), "skew": cell.victim.skew}
        fewest = 2 if cell.victim.clients > 1 else 1  # one image alone is no batch for batch normalisation
        seed = derive_seed(cell.seed, "clients", params)
        return await self.make(Step("clients", "clients", inputs, {**params, "fewest": fewest}, seed))

    async def keys(self, cell: Cell) -> Artefact:
        """The clients' keys."""
        inputs = {"split": await self.split(cell.dataset, cell.seed)}
        if cell.defense.key_scope == "client":
            inputs["clients"] = await self.clients(cell)
        defense = cell.defense.protection()
        seed = derive_seed(cell.seed, "keys", defense.identity())
        return await self.make(Step("keys", "keys", inputs, self._deployed(defense), seed, (defense.ref.code,)))

    async def release(self, cell: Cell) -> Artefact:
        """What the defense lets out, and the test images as a client would send them."""
        inputs = {"split": await self.split(cell.dataset, cell.seed), "keys": await self.keys(cell)}
        defense = cell.defense.protection()
        params = {**self._deployed(defense), "targets": self.plan.targets}
        seed = derive_seed(cell.seed, "release", defense.identity())
        return await self.make(Step("release", "release", inputs, params, seed, (defense.ref.code,)))

    async def start(self, cell: Cell) -> Artefact:
        """The victim's public starting weights, as the defense adapts them."""
        code = self._built(cell, cell.defense)
        return await self.make(await self._start(cell, await self.keys(cell), self._deployed(cell.defense), code))

    async def plain_start(self, cell: Cell) -> Artefact:
        """The starting weights before any defense adapts them."""
        keys, _ = await self._unprotected(cell)
        return await self.make(await self._start(cell, keys, PLAIN, self._built(cell)))

    async def victim(self, cell: Cell, trainer: Ref | None = None, until: int | None = None) -> Artefact:
        """The trained victim; with a training attack, under its hand; or as it is after so many rounds."""
        keys, release, start = await self.keys(cell), await self.release(cell), await self.start(cell)
        plain_keys, plain_release = await self._unprotected(cell)
        if release.sha256 == plain_release.sha256 and not cell.defense.shields:  # one victim with the plain one
            return await self.make(await self._training(cell, start, plain_keys, plain_release, trainer, until=until))
        return await self.make(await self._training(cell, start, keys, release, trainer, cell.defense, until))

    async def plain_victim(self, cell: Cell) -> Artefact:
        """The same victim trained on unprotected images; one artefact with that of the defense `none`."""
        keys, release = await self._unprotected(cell)
        return await self.make(await self._training(cell, await self.plain_start(cell), keys, release))

    async def _unprotected(self, cell: Cell) -> tuple[Artefact, Artefact]:
        split = await self.split(cell.dataset, cell.seed)
        keys = await self.make(Step("keys", "keys", {"split": split}, PLAIN, 0))
        return keys, await self.make(Step("release", "release", {"split": split, "keys": keys},
                                          {**PLAIN, "targets": self.plan.targets}, 0))

    async def _start(self, cell: Cell, keys: Artefact, deployed: dict[str, Any], code: tuple[str, ...]) -> Step:
        inputs = {"split": await self.split(cell.dataset, cell.seed), "keys": keys}
        recipe = cell.victim.architecture()
        if cell.victim.given:
            inputs["weights"] = await self._weights(cell.victim)
        return Step("start", "start", inputs, {**deployed, "recipe": recipe}, derive_seed(cell.seed, "start", recipe),
                    code)

    async def _weights(self, recipe: Recipe) -> Artefact:
        """Weights that a victim starts from, out of a file or from whoever publishes them."""
        path = self.plan.weights.get(recipe.weights)
        if path is None:
            return await self.make(Step("weights", "weights", {}, {"model": recipe.model, "kwargs": recipe.kwargs}, 0))
        ref = Ref("weights", recipe.weights, file=str(path)).as_json()
        return await self.make(Step("weights", "weights", {}, {"file": ref}, 0))

    async def _training(self, cell: Cell, start: Artefact, keys: Artefact, release: Artefact,
                        trainer: Ref | None = None, defense: DefensePlan | None = None,
                        until: int | None = None) -> Step:
        """Training on a release; `defense` None = nothing is protected."""
        recipe = cell.victim
        code = (*self._built(cell, defense), *((trainer.code,) if trainer else ()))
        inputs = {"start": start, "release": release}
        params = {"recipe": asdict(recipe), "until": until, **({"ref": self._ref(trainer)} if trainer else {})}
        if defense is not None and defense.shields:
            params["shield"] = self._deployed(defense)
        if recipe.clients > 1:
            inputs["clients"] = await self.clients(cell)
        if recipe.renews:  # the clients' own images, keys and defense take part in every epoch
            inputs |= {"split": await self.split(cell.dataset, cell.seed), "keys": keys}
            params |= PLAIN if defense is None else self._deployed(defense.protection())
        return Step("victim", "victim", inputs, params, derive_seed(cell.seed, "victim", asdict(recipe)), code)

    # --- what an adversary gets

    async def view(self, cell: Cell) -> Artefact:
        """Exactly what the threat model grants."""
        threat, attack = cell.threat, cell.attack.refs[0]
        inputs = {"split": await self.split(cell.dataset, cell.seed), "keys": await self.keys(cell),
                  "release": await self.release(cell)}
        if cell.victim.weights and threat.grants & {"model", "gradients"}:  # whoever can name them, has them
            inputs["published"] = await self.plain_start(cell)
        if cell.attack.trains:  # the model that is handed out is the one trained under the attack's hand
            inputs["victim"] = await self.victim(cell, attack)
        elif "gradients" in threat.grants:
            inputs |= await self._sent(cell, inputs)
        elif "model" in threat.grants:
            inputs["victim"] = await self.victim(cell)
        if "pairs" in threat.grants:
            pairs = Step("pairs", "pairs", {name: inputs[name] for name in ("split", "keys")},
                         {**self._deployed(cell.defense.protection()), **self._against(threat)},
                         derive_seed(cell.seed, "pairs", cell.defense.protection().identity()),
                         (cell.defense.ref.code,))
            inputs["pairs"] = await self.make(pairs)
        params = {**self._deployed(cell.defense), **self._against(threat)}
        if cell.attack.accuses:
            inputs["candidates"] = await self._candidates(cell, inputs)
            params["recipe"] = asdict(cell.victim)
        view = await self.make(Step("view", "view", inputs, params, 0, (cell.defense.ref.code,)))
        if "oracle" not in threat.grants or not cell.attack.asks:
            return view
        asked = Step("queries", "queries", {"view": view}, {"ref": self._ref(attack), "most": threat.queries},
                     derive_seed(cell.seed, "queries", attack.identity), self._acting(attack, cell), cell.defense.ref)
        answers = Step("answers", "answers", {"queries": await self.make(asked), "keys": inputs["keys"]},
                       self._deployed(cell.defense.protection()),
                       derive_seed(cell.seed, "answers", cell.defense.protection().identity()),
                       (cell.defense.ref.code,))
        inputs["answers"] = await self.make(answers)
        return await self.make(Step("view", "view", inputs, params, 0, (cell.defense.ref.code,)))

    async def lineup(self, cell: Cell) -> Artefact:
        """Members and others, mixed."""
        inputs = {"whole": await self.split(cell.dataset.whole, cell.seed),
                  "split": await self.split(cell.dataset, cell.seed)}
        return await self.make(Step("lineup", "lineup", inputs, {}, derive_seed(cell.seed, "lineup")))

    async def _candidates(self, cell: Cell, inputs: Mapping[str, Artefact]) -> Artefact:
        """The same, as the adversary meets them."""
        defense = cell.defense.protection()
        shown = {"split": inputs["split"], "keys": inputs["keys"], "lineup": await self.lineup(cell)}
        seed = derive_seed(cell.seed, "candidates", defense.identity())
        return await self.make(Step("candidates", "candidates", shown, self._deployed(defense), seed,
                                    (defense.ref.code,)))

    async def _sent(self, cell: Cell, inputs: Mapping[str, Artefact]) -> dict[str, Artefact]:
        """The model that clients got, and the updates that they sent."""
        threat, code = cell.threat, self._built(cell, cell.defense)
        model = {"start": await self.start(cell)} if threat.round == "first" else \
            {"victim": await self.victim(cell, until=cell.victim.until(threat.round))}
        if cell.attack.crafts:
            model, code = {"start": await self._crafted(cell, {**inputs, **model})}, (*code, cell.attack.refs[0].code)
        update = Step("update", "update", {**model, "release": inputs["release"]},
                      {**self._deployed(cell.defense), **self._against(threat),
                       "label_smoothing": cell.victim.label_smoothing},
                      derive_seed(cell.seed, "update", cell.defense.protection().identity(), threat.settings()), code)
        return {**model, "update": await self.make(update)}

    async def _crafted(self, cell: Cell, inputs: Mapping[str, Artefact]) -> Artefact:
        """The model that a malicious server hands out in the place of the true one."""
        attack = cell.attack.refs[0]
        before = replace(cell.threat, grants=cell.threat.grants - {"gradients", "pairs", "oracle"})
        params = {**self._deployed(cell.defense), **self._against(before)}
        view = await self.make(Step("view", "view", inputs, params, 0, (cell.defense.ref.code,)))
        return await self.make(Step("craft", "craft", {"view": view}, {"ref": self._ref(attack)},
                                    derive_seed(cell.seed, "craft", attack.identity), self._acting(attack, cell),
                                    cell.defense.ref))

    async def public_view(self, cell: Cell) -> Artefact:
        """What somebody has who reads neither a release nor a private image."""
        inputs = {"split": await self.split(cell.dataset, cell.seed)}
        return await self.make(Step("view", "public-view", inputs, {"targets": self.plan.targets}, 0))

    async def attack(self, ref: Ref, view: Artefact, cell: Cell) -> "Attacked":
        """An attack's reconstruction from a view, its priors learnt first."""
        found = await self.priors(ref, view, cell)
        inputs = {"view": view, **{f"prior:{name}": prior for name, prior in found.items()}}
        made = await self.make(self._acted("attack", inputs, ref, cell))
        return Attacked(made, sum(prior.seconds for prior in found.values()), made.seconds)

    async def priors(self, ref: Ref, view: Artefact, cell: Cell) -> dict[str, Artefact]:
        """What an attack wants learnt before it runs, by name."""
        wanted = (await self.make(self._acted("priors", {"view": view}, ref, cell))).info["priors"]
        names = sorted(wanted)
        found = await asyncio.gather(*(self.prior(wanted[name], ref, view, cell) for name in names))
        return dict(zip(names, found, strict=True))

    def _acted(self, stage: str, inputs: Mapping[str, Artefact], ref: Ref, cell: Cell) -> Step:
        """A step in which an attack of a cell acts."""
        return Step(stage, stage, inputs, {"ref": self._ref(ref)}, derive_seed(cell.seed, "attack", ref.identity),
                    self._acting(ref, cell), cell.defense.ref)

    async def prior(self, prior: dict[str, Any], ref: Ref | None, view: Artefact, cell: Cell) -> Artefact:
        """What an adversary learnt: shared by all cells in which it would see the same."""
        module = prior["class"].partition(":")[0]
        code = ref.code if ref is not None and is_file(ref.name) else code_digest(module)
        # LPIPS's weights are no parameter, yet a guess that is optimised for it depends on them.
        key = json_digest([prior, cell.seed, code, self.plan.lpips, self.plan.limits.threads,
                           self.plan.environment])[:32]
        params = {"prior": prior, "ref": self._ref(ref) if ref is not None else None}
        # Code enters keys, never seeds, so a file's module, which is named by its content, is none of the identity.
        home = ref.name.rpartition(":")[0] if ref is not None and is_file(ref.name) else module
        identity = derive_seed(cell.seed, "prior", home, prior["class"].partition(":")[2], prior["params"])
        step = Step("prior", "prior", {"view": view}, params, identity, places=cell.defense.ref)
        return await self._shared(step, key)

    async def reconstruction(self, cell: Cell) -> "Attacked":
        """The reconstruction of a cell and, in a chain, the outer attack's estimate of the release."""
        view = await self.view(cell)
        outer = await self.attack(cell.attack.refs[0], view, cell)
        if len(cell.attack.refs) == 1:
            return outer
        inputs = {"view": view, "outer": outer.reconstruction}
        inner = await self.attack(cell.attack.refs[1], await self.make(Step("view", "inner-view", inputs, {}, 0)), cell)
        return Attacked(inner.reconstruction, outer.learning + inner.learning, outer.seconds + inner.seconds,
                        outer.reconstruction)

    # --- what the scorer needs

    async def judge(self, cell: Cell) -> Artefact:
        """The classifier trained on public images."""
        inputs = {"split": await self.split(cell.dataset, cell.seed)}
        return await self.make(Step("judge", "judge", inputs, {}, derive_seed(cell.seed, "judge")))

    async def verifier(self, cell: Cell) -> Artefact:
        """The network that tells people apart, trained on public ones."""
        inputs = {"split": await self.split(cell.dataset, cell.seed)}
        return await self.make(Step("verifier", "verifier", inputs, {}, derive_seed(cell.seed, "verifier")))

    async def guess(self, cell: Cell, metric: str) -> Artefact | None:
        """The best blind guesses for a metric; None where it cannot be measured."""
        view = await self.public_view(cell)
        params = {"metric": metric, "trunk": self.plan.score.lpips_trunk}
        asked = Step("priors", "describe-guess", {"view": view}, params, 0)
        try:
            described = await self.make(asked)
            return await self.prior(described.info["prior"], None, view, cell)
        except StageFailed as failure:
            if failure.status == "not-applicable":
                return None
            raise

    async def sheet(self, cell: Cell, found: Artefact, outer: Artefact | None) -> Artefact:
        """The scores of a cell."""
        release = await self.release(cell)
        partnered = codec.facts(release.path)["release"]["source"] is not None
        inputs, params = await self._yardstick(cell)
        params["order"] = asdict(order_of(partnered, _link(found), _link(outer) if outer else None))
        inputs |= {"floor": await self._floor(cell, inputs, params), "release": release, "found": found}
        if outer is not None:
            inputs["outer"] = outer
        params["pieces"] = release.info["pieces"]
        return await self.make(Step("score", "score", inputs, params, derive_seed(cell.seed, "score")))

    async def accusation(self, cell: Cell, found: Artefact) -> Artefact:
        """How well members were told from others."""
        return await self.make(Step("score", "accusation", {"lineup": await self.lineup(cell), "found": found}, {}, 0))

    async def _yardstick(self, cell: Cell) -> tuple[dict[str, Artefact], dict[str, Any]]:
        """What the targets are compared by, whatever the defense."""
        groups = self.plan.score.groups
        inputs = {"split": await self.split(cell.dataset, cell.seed)}
        if {"identification", "recognition"} & set(groups):
            inputs["judge"] = await self.judge(cell)
        if "verification" in groups:
            inputs["verifier"] = await self.verifier(cell)
        settings = {"groups": groups, "lpips_trunk": self.plan.score.lpips_trunk,
                    "distractors": self.plan.score.distractors}
        return inputs, {"settings": settings, "lpips": self.plan.lpips, "quality": self.plan.quality,
                        "targets": self.plan.targets}

    async def _floor(self, cell: Cell, inputs: Mapping[str, Artefact], params: Mapping[str, Any]) -> Artefact:
        """What blind guesses score: the same for all cells whose adversaries know as much of the labels."""
        guesses = {}
        for metric in GUESSED:
            if metric in self.plan.score.groups:
                guess = await self.guess(cell, metric)
                if guess is not None:
                    guesses[f"guess:{metric}"] = guess
        # A trainer sees the labels and can hide them in the weights beside the images.
        known = {"labels_known": bool({"labels", "training"} & cell.threat.grants)}
        return await self.make(Step("floor", "floor", {**inputs, **guesses}, {**params, **known},
                                    derive_seed(cell.seed, "floor")))

    def _built(self, cell: Cell, defense: DefensePlan | None = None) -> tuple[str, ...]:
        """Name the sources of the victim's network, and of the defense that adapts it."""
        return network_code(cell.victim.model), *((defense.ref.code,) if defense else ())

    def _acting(self, attack: Ref, cell: Cell) -> tuple[str, ...]:
        """Name the sources that an attack runs: its own, and those of the network that a view may hold."""
        return attack.code, network_code(cell.victim.model)

    def _deployed(self, defense: DefensePlan) -> dict[str, Any]:
        return {"defense": self._ref(defense.ref), "key_scope": defense.key_scope, "quantise": defense.quantise,
                "clients": defense.clients}

    def _against(self, threat: ThreatModel) -> dict[str, Any]:
        settings = {**asdict(threat), "grants": sorted(threat.grants)}
        settings.pop("name")
        return {"threat": {**settings, "name": ""}, "targets": self.plan.targets}

    def _ref(self, ref: Ref) -> dict[str, Any]:
        """Encode a reference; a file plug-in is loaded from the run's own copy."""
        return replace(ref, file=self.files.get(ref.file, ref.file) if ref.file else None).as_json()


def _link(found: Artefact) -> Link:
    facts = codec.facts(found.path)
    return Link(facts["of"], facts["aligned"], facts["within"])


def _identity(params: Any) -> Any:
    """Strip from references what differs between folders but not between results: files, and the code in the key."""
    if isinstance(params, dict):
        is_ref = params.keys() >= {"group", "name", "file", "code"}
        left = ("file", "code", "files") if is_ref else ()
        return {name: _identity(value) for name, value in params.items() if name not in left}
    return params
