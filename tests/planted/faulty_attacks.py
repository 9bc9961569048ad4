"""Attacks with one fault each; what must be said of them stands in conformance/test_planted_faults.py."""

import random
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ppbench.attack import Attack, CraftingAttack, Prior, Reconstruction, TrainingAttack
from ppbench.data import Images
from ppbench.defense import resize


def fitted(view):
    return resize(view.images, view.image_shape)


@dataclass(frozen=True)
class Honest(Attack):
    """Return what was released."""

    requires = frozenset({"images"})
    default_threat = "ciphertext-only"

    def run(self, view, priors, rng):
        return Reconstruction(fitted(view), aligned=view.has_partner)


@dataclass(frozen=True)
class Unwritten(Attack):
    """Lack the one method that counts."""

    requires = frozenset({"images"})
    default_threat = "ciphertext-only"


@dataclass(frozen=True)
class ReadsUndeclared(Honest):
    """Read the public images without asking for them."""

    def run(self, view, priors, rng):
        return Reconstruction((fitted(view) + 0 * view.public.pixels.mean(0)).clamp(0, 1))


@dataclass(frozen=True)
class ReadsWhatNobodyGrants(Honest):
    """Read the key, which its threat model withholds as well."""

    def run(self, view, priors, rng):
        assert view.keys is None
        return Reconstruction(fitted(view))


def noisy(view, noise):
    return Reconstruction((fitted(view) + 0.01 * noise).clamp(0, 1))


@dataclass(frozen=True)
class GlobalTorch(Honest):
    """Draw from torch's global generator."""

    def run(self, view, priors, rng):
        return noisy(view, torch.rand(()))


@dataclass(frozen=True)
class GlobalNumpy(Honest):
    """Draw from numpy's global generator."""

    def run(self, view, priors, rng):
        return noisy(view, np.random.rand())  # noqa: NPY002


@dataclass(frozen=True)
class GlobalPython(Honest):
    """Draw from Python's global generator."""

    def run(self, view, priors, rng):
        return noisy(view, random.random())


@dataclass(frozen=True)
class SystemEntropy(Honest):
    """Draw from the operating system."""

    def run(self, view, priors, rng):
        return noisy(view, random.SystemRandom().random())


@dataclass(frozen=True)
class Reseeds(Honest):
    """Seed torch's global generator."""

    def run(self, view, priors, rng):
        torch.manual_seed(0)
        return noisy(view, torch.rand(()))


@dataclass(frozen=True)
class SetsThreads(Honest):
    """Take more threads."""

    def run(self, view, priors, rng):
        torch.set_num_threads(3)
        return super().run(view, priors, rng)


@dataclass(frozen=True)
class SetsOneThread(Honest):
    """Take one thread, as many as a trial has."""

    def run(self, view, priors, rng):
        torch.set_num_threads(1)
        return super().run(view, priors, rng)


@dataclass(frozen=True)
class HiddenTrainer(TrainingAttack):
    """Act in training without saying so."""

    requires = frozenset({"model", "public"})
    default_threat = "white-box"

    def run(self, view, priors, rng):
        return Reconstruction(torch.rand(view.n_targets, *view.image_shape, generator=rng))


@dataclass(frozen=True)
class SetsDtype(Honest):
    """Compute in float64 from now on."""

    def run(self, view, priors, rng):
        torch.set_default_dtype(torch.float64)
        return super().run(view, priors, rng)


@dataclass(frozen=True)
class SquareOnly(Honest):
    """Take every image for a square."""

    def run(self, view, priors, rng):
        side = view.image_shape[1]
        return Reconstruction(resize(view.images, (view.image_shape[0], side, side)))


@dataclass(frozen=True)
class ColourOnly(Honest):
    """Mix three channels."""

    def run(self, view, priors, rng):
        mixed = torch.einsum("nchw,cd->ndhw", fitted(view), torch.eye(3))
        return Reconstruction(mixed)


@dataclass(frozen=True)
class ManyTargetsOnly(Honest):
    """Stretch the contrast by the spread between targets."""

    def run(self, view, priors, rng):
        images = fitted(view)
        return Reconstruction((images / images.std(0).clamp(0.1)).clamp(0, 1))


@dataclass(frozen=True)
class SameSizeOnly(Honest):
    """Forget that a release may be smaller."""

    def run(self, view, priors, rng):
        return Reconstruction(view.images)


@dataclass(frozen=True)
class PartnersOnly(Honest):
    """Look every target's partner up."""

    def run(self, view, priors, rng):
        rows = view.release.source[view.target_rows]
        return Reconstruction(resize(view.release.images[rows], view.image_shape))


@dataclass(frozen=True)
class NotFinite(Honest):
    """Divide by nothing."""

    def run(self, view, priors, rng):
        return Reconstruction(fitted(view) / 0 * 0)


@dataclass(frozen=True)
class OutOfRange(Honest):
    """Return values from -1 to 1."""

    def run(self, view, priors, rng):
        return Reconstruction(fitted(view) * 2 - 1)


@dataclass(frozen=True)
class TooFew(Honest):
    """Return one image for all targets."""

    def run(self, view, priors, rng):
        return Reconstruction(fitted(view)[:1])


@dataclass(frozen=True)
class WritesView(Honest):
    """Clamp the released images where they lie."""

    def run(self, view, priors, rng):
        view.release.images.mul_(0.5)
        return Reconstruction(fitted(view))


@dataclass(frozen=True)
class OneForAll(Honest):
    """Return the mean of the released images for every target."""

    def run(self, view, priors, rng):
        return Reconstruction(fitted(view).mean(0, keepdim=True).repeat(view.n_targets, 1, 1, 1))


@dataclass(frozen=True)
class Inverted(Honest):
    """Return negatives."""

    def run(self, view, priors, rng):
        return Reconstruction(1 - fitted(view))


@dataclass(frozen=True)
class NoFloor(Honest):
    """Call itself a floor."""

    role = "floor"


@dataclass(frozen=True)
class UnknownCapability(Honest):
    """Require what does not exist."""

    requires = frozenset({"images", "publik"})


NAMES = {"images"}


@dataclass(frozen=True)
class ComputedRequires(Honest):
    """Compute what it requires."""

    requires = frozenset(NAMES | {"public"})


@dataclass(frozen=True)
class WeakThreat(Honest):
    """Name a threat model that grants too little."""

    requires = frozenset({"images", "pairs"})


@dataclass
class Thawed(Attack):
    """Leave its parameters open to change."""

    requires = frozenset({"images"})
    default_threat = "ciphertext-only"
    level: int = 0

    def run(self, view, priors, rng):
        return Reconstruction(fitted(view), aligned=view.has_partner)


@dataclass(frozen=True)
class Silent(Honest):
    level: int = 0


@dataclass(frozen=True)
class BadDefault(Honest):
    """A parameter whose default its own annotation refuses."""

    steps: int = field(default="many")


@dataclass(frozen=True)
class Mean(Prior):
    """The mean public image."""

    needs = frozenset({"public"})

    def train(self, view, rng):
        return {"mean": view.public.pixels.mean(0)}


@dataclass(frozen=True)
class RandomMean(Mean):
    """A mean with noise of the global generator."""

    def train(self, view, rng):
        return {"mean": (super().train(view, rng)["mean"] + 0.01 * torch.rand(())).clamp(0, 1)}


@dataclass(frozen=True)
class GreedyPrior(Honest):
    """Learn from public images that it does not require."""

    def priors(self, view):
        return {"mean": Mean()}


@dataclass(frozen=True)
class UnsteadyPrior(Honest):
    """Learn something else every time."""

    requires = frozenset({"images", "public"})

    def priors(self, view):
        return {"mean": RandomMean()}


@dataclass(frozen=True)
class Trainer(TrainingAttack):
    """Act in training, honestly."""

    requires = frozenset({"model", "training", "public"})
    default_threat = "malicious-trainer"

    def run(self, view, priors, rng):
        return Reconstruction(view.public.pixels.mean(0).repeat(view.n_targets, 1, 1, 1))


@dataclass(frozen=True)
class Crafter(CraftingAttack):
    """Hand out the model as it is."""

    requires = frozenset({"model", "gradients", "server", "public"})
    default_threat = "malicious-server"

    def craft(self, view, rng):
        return view.model

    def run(self, view, priors, rng):
        return Reconstruction(view.public.pixels.mean(0).repeat(view.n_targets, 1, 1, 1))


@dataclass(frozen=True)
class HiddenCrafter(Crafter):
    """Craft the clients' model without saying so."""

    requires = frozenset({"model", "gradients", "public"})
    default_threat = "federated-server"


@dataclass(frozen=True)
class CraftsRecipe(Crafter):
    """Hand out a model without weights."""

    def craft(self, view, rng):
        return replace(view.model, state=None)


@dataclass(frozen=True)
class CraftsAtRandom(Crafter):
    """Add noise of the global generator to the weights."""

    def craft(self, view, rng):
        return replace(view.model, state={name: value + 1e-6 * torch.rand(()) if value.is_floating_point() else value
                                          for name, value in view.model.state.items()})


@dataclass(frozen=True)
class RandomWeights(Trainer):
    """Hide noise of the global generator in the weights."""

    def finish(self, release, state, rng):
        return {name: value + 1e-6 * torch.rand(()) for name, value in state.items()}


@dataclass(frozen=True)
class RoundsWeights(Trainer):
    """Return the weights in float64."""

    def finish(self, release, state, rng):
        return {name: value.double() for name, value in state.items()}


@dataclass(frozen=True)
class BadMore(Trainer):
    """Add images of classes that there are none of."""

    def more(self, release, classes, rng):
        return Images(release.images, release.labels + classes, release.labels)


@dataclass(frozen=True)
class BadPenalty(Trainer):
    """Add one loss an image instead of one number."""

    def penalty(self, release, net, rng):
        return lambda net: net(release.images).square().mean(1)


@dataclass(frozen=True)
class AsksNothing(Honest):
    """Require the oracle and ask it nothing."""

    requires = frozenset({"images", "oracle"})
    default_threat = "chosen-plaintext"


@dataclass(frozen=True)
class AsksAtRandom(AsksNothing):
    """Ask something else every time."""

    def queries(self, view):
        return torch.rand(2, *view.image_shape, generator=torch.Generator().manual_seed(random.getrandbits(30)))


@dataclass(frozen=True)
class OneBatchOnly(Attack):
    """Take the first gradient for that of all targets."""

    requires = frozenset({"model", "gradients", "public"})
    default_threat = "federated-server"

    def run(self, view, priors, rng):
        (_,) = next(iter(view.update.values.values()))
        return Reconstruction(view.public.pixels.mean(0).repeat(view.n_targets, 1, 1, 1))
