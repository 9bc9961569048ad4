"""How often the whole key of a block cipher is found, from what, and in how long."""

import time
from dataclasses import dataclass, replace

import torch
from _real import cifar10
from _table import Figure, at_least, at_most
from torch import Tensor

from ppbench import victim
from ppbench.attacks._key_structure import structure_of
from ppbench.attacks._key_weights import from_weights
from ppbench.attacks.key_recovery import KeyRecovery
from ppbench.data import Images
from ppbench.defense import Keys, KeyScope, draw_keys, keys_for_more
from ppbench.lessons import Lesson, Same
from ppbench.metrics import ssim
from ppbench.model import Model, for_images
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.view import Algorithm, Pairs, Sealed, View, quantised

PRESETS = ("vit-cipher", "etc", "le", "ele", "pe")
PROMISED = ("vit-cipher", "le")
ALIKE = 0.995  # mean SSIM where nearly all keys are found whole
BLOCKS = (4, 8)
RELEASED = 64  # images under one key
QUERIES = 16  # that an oracle answers
READ = 0.99  # of the key in a ViT whose starting weights are published
VIT = {"patch_size": 4, "embed_dim": 128, "depth": 2, "num_heads": 4}


@dataclass(frozen=True)
class Case:
    """A cipher with one key, and what the adversary has besides its release.

    Attributes:
        preset: of block scrambling.
        block: side of a block.
        pairs: known pairs.
        asks: whether there is an oracle.
        scope: how far the key is reused.
        released: how many images there are under it.
    """

    preset: str
    block: int
    pairs: int = 0
    asks: bool = False
    scope: KeyScope = "global"
    released: int = RELEASED

    @property
    def algorithm(self) -> Algorithm:
        """The defense as everyone knows it."""
        params = {"preset": self.preset, "block": self.block}
        return Algorithm(Ref("defenses", "block-scrambling", params), self.scope, 8)


def keys(quick: bool) -> list[Figure]:
    """Measure every way to a key."""
    images, labels = cifar10("train")
    half = len(images) // 2
    private, public = (Images(images[part], labels[part], torch.arange(half)) for part in
                       (slice(half), slice(half, 2 * half)))
    trials = 2 if quick else 100
    found = []
    for preset in PRESETS:
        for block in sides(preset)[:1 if quick else None]:
            found += [*told(Case(preset, block, pairs=1), private, public, trials),
                      *told(Case(preset, block, asks=True), private, public, trials)]
    for pairs in (16,) if quick else (4, 16, 64):
        found += told(Case("ele", 4, pairs=pairs), private, public, trials)
    for preset in PRESETS:
        found += [*told(Case(preset, 4, pairs=16, scope="image"), private, public, min(trials, 10)),
                  *told(Case(preset, 4, asks=True, scope="image"), private, public, min(trials, 10))]
    for count in (300,) if quick else (100, 300, 1000, 10000):
        for preset in ("pe",) if quick else ("vit-cipher", "le", "etc", "pe"):
            for block in sides(preset)[:1 if quick else None]:
                found += told(Case(preset, block, released=count), private, public, 1 if quick else 3)
    return found + weights(private, 5 if quick else 1000)


def sides(preset: str) -> tuple[int, ...]:
    """Return the sides of blocks that make a difference."""
    return BLOCKS[:1] if preset == "pe" else BLOCKS


def told(case: Case, private: Images, public: Images, trials: int) -> list[Figure]:
    """Try a case under so many keys, with other images each time: rate of keys found whole, SSIM, seconds."""
    whole, scores, seconds, asked = 0, [], 0.0, 0
    for trial in range(trials):
        rows = torch.randperm(len(private), generator=generator(trial))
        mine = private[rows[: case.released]]
        view = view_of(case, mine, public[torch.randperm(len(public), generator=generator(-1 - trial))], trial)
        start = time.perf_counter()
        images = KeyRecovery().run(view, {}, generator(trial)).images
        seconds += time.perf_counter() - start
        whole += torch.equal(images, mine.pixels)
        scores.append(ssim(images[:RELEASED], mine.pixels[:RELEASED]).mean().item())
        asked = len(view.answers) if case.asks else 0
    name = f"{case.preset}, blocks of {case.block}{', a key an image' if case.scope == 'image' else ''}: "
    name += f"{case.pairs} known pair(s)" if case.pairs else \
        f"{asked} chosen image(s)" if case.asks else f"no pairs, {case.released} images"
    promised = case.scope == "global" and case.preset in PROMISED and (case.asks or case.pairs == 1)
    rate = (at_least(name, f"whole keys of {trials}", whole / trials, 0.95) if promised else
            Figure(name, f"whole keys of {trials}", whole / trials))
    spent = at_most(name, "seconds a trial", seconds / trials, 1.0) if promised else \
        Figure(name, "seconds a trial", seconds / trials)
    score = sum(scores) / trials
    return [rate, at_least(name, "SSIM", score, ALIKE) if promised else Figure(name, "SSIM", score), spent]


def view_of(case: Case, private: Images, public: Images, seed: int) -> View:
    """Return what the adversary sees of `private`, all of it targets."""
    algorithm = case.algorithm
    defense, shape = algorithm.defense, private.shape
    own = draw_keys(defense, case.scope, len(private), shape, generator(seed))
    release = quantised(defense.protect(private, own, generator(0)), 8)
    sealed = Sealed(frozenset({"images", "public", "algorithm"}), shape, shape, len(private), 10, release=release,
                    target_rows=torch.arange(len(private)), public=public, algorithm=algorithm, n_queries=QUERIES)
    if case.pairs:
        known = public[: case.pairs]
        sealed = replace(sealed, granted=sealed.granted | {"pairs"},
                         pairs=Pairs(known.pixels, _protected(algorithm, known, own)))
    if case.asks:
        asked = KeyRecovery().queries(View(sealed))
        chosen = Images(asked, torch.zeros(len(asked), dtype=torch.int64), torch.arange(len(asked)))
        answers = _protected(algorithm, chosen, own) if len(asked) else asked
        sealed = replace(sealed, granted=sealed.granted | {"oracle"}, answers=answers)
    return View(sealed)


def weights(private: Images, most: int) -> list[Figure]:
    """Read the key off a key-adapted ViT, after more and more training, from published and from other weights."""
    plain, other = start(0), start(1)
    case = Case("vit-cipher", 4)
    defense = case.algorithm.defense
    mine = private[:2000]
    own = draw_keys(defense, "global", len(mine), mine.shape, generator(0))
    lesson = Lesson(defense.protect(mine, own, generator(0)).images, mine.labels)
    adapted = defense.adapt(plain, own)
    structure = structure_of(case.algorithm, mine.shape)
    assert structure is not None
    assert own is not None
    found = []
    for steps in (0, most // 10, most):
        recipe = Recipe(adapted.factory, adapted.kwargs, steps=max(1, steps), batch=64, learning_rate=1e-3, amp=True)
        model = victim.teach(adapted, Same(lesson), recipe, generator(1))[0] if steps else adapted
        for name, known in (("published", plain), ("private", other)):
            key = from_weights(structure, model, known)
            rows, places = (0.0, 0.0) if key is None else \
                ((key.key.order[0] == own.values["pixels"][0]).double().mean().item(),
                 (key.key.source == own.values["blocks"][0]).double().mean().item())
            what = f"vit-cipher, blocks of 4, {name} starting weights, {steps} steps of training"
            found += [at_least(what, share, value, READ) if name == "published" else Figure(what, share, value)
                      for share, value in (("share of the block's values found", rows),
                                           ("share of places found", places))]
    return found


def start(seed: int) -> Model:
    """Return a ViT with random weights."""
    with seeded(seed):
        model = for_images("timm:vit_tiny_patch16_224", VIT, (3, 32, 32), 10)
        return model.with_state(model.build())


def _protected(algorithm: Algorithm, images: Images, own: Keys | None) -> Tensor:
    keys = keys_for_more(algorithm.defense, own, algorithm.key_scope, len(images), images.shape, generator(2))
    return quantised(algorithm.defense.protect(images, keys, generator(3)), 8).images
