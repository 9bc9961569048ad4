"""One shadow: the whole of defense and training, repeated with images of the adversary's choice."""

from dataclasses import dataclass

import torch

from ppbench.data import Images
from ppbench.defense import Keys, Release, draw_keys
from ppbench.federated import deal
from ppbench.lessons import Lessons, Renewed, Same, lesson_of
from ppbench.model import Model
from ppbench.seeding import derive_seed, generator, seeded, spawn
from ppbench.training import Shield
from ppbench.victim import adapted, plain_start, teach
from ppbench.view import View, quantised

_FEWEST = 2  # images of a client: one alone is no batch for batch normalisation


@dataclass(frozen=True)
class ShadowVictim:
    """A network trained as the victim was, and the keys of those who trained it.

    Attributes:
        model: its weights.
        keys: of the images that it was trained with; None = the defense has none.
    """

    model: Model
    keys: Keys | None

    @classmethod
    def trained(cls, view: View, images: Images, rng: torch.Generator) -> "ShadowVictim":
        """Protect images with one's own keys, and train as the victim was trained.

        Args:
            view: holds `algorithm` and `recipe`; with `model` also the published weights that training starts from.
            images: in the place of the private ones.
            rng: draws everything.
        """
        algorithm, recipe = view.algorithm, view.recipe
        owner = None if recipe.clients == 1 else deal(images.labels, recipe.clients, recipe.skew, spawn(rng), _FEWEST)
        keys = draw_keys(algorithm.defense, algorithm.key_scope, len(images), images.shape, spawn(rng),
                         algorithm.clients, owner)
        release = algorithm.defense.protect(images, keys, spawn(rng))
        release = quantised(release, algorithm.quantise)
        with seeded(int(torch.randint(2**62, (), generator=rng))):
            plain = (view.start if "model" in view.granted else None) or \
                plain_start(recipe, images.shape, view.classes)
            start = adapted(plain, algorithm.defense, keys)
        if owner is not None and release.source is not None:
            owner = owner[release.source]
        lessons = _lessons(view, images, keys, release)
        model, _ = teach(start, lessons, recipe, spawn(rng), owner=owner, shield=_shield(view, spawn(rng)))
        return cls(model, keys)


def _lessons(view: View, images: Images, keys: Keys | None, release: Release) -> Lessons:
    algorithm, recipe = view.algorithm, view.recipe
    if recipe.renews and release.source is not None:
        return Renewed(images, algorithm.defense, keys, algorithm.key_scope, algorithm.quantise, recipe.augment)
    return Same(lesson_of(release), recipe.augment)


def _shield(view: View, rng: torch.Generator) -> Shield | None:
    """Protect updates as the victim's clients do, if they do."""
    defense = view.algorithm.defense
    if not defense.shields():
        return None
    seed = int(torch.randint(2**62, (), generator=rng))
    return lambda update, number: defense.protect_update(update, generator(derive_seed(seed, number)))
