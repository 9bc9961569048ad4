"""GAN inversion: the image of a public generator that explains what was released."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._blended import LinearOfSeen, blended
from ppbench.attacks._decrypted import decrypted
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._gan import Generator, Nets, held_out
from ppbench.attacks._latent_search import Search, best_stop
from ppbench.attacks._latent_signature import choose
from ppbench.attacks._linear_map import LinearMap
from ppbench.bounds import above_zero, at_least, between
from ppbench.data import Images
from ppbench.defense import resize
from ppbench.seeding import spawn
from ppbench.view import View

BANK = 256  # codes of public images, and as many new ones, among which a search starts
TRIED = 8  # public images on which it is tried out what a key leaves as it is


@dataclass(frozen=True)
class GanInversion(Attack):
    """Search a generator trained on public images for what explains the release (GIFD, Fang et al. 2023, and others).

    A guess is compared with the release through what the key leaves as it is: the defense run on the guess where it
    has no key, otherwise the blocks as a set, their sorted values and the like, whichever holds under keys of one's
    own. Whoever is given the key decrypts the release first. The search starts from the best of many codes, then goes
    on in the generator's features. How far it may go is decided on public images that the generator has not seen,
    protected with own keys and searched for alongside. What the generator cannot draw is taken from the linear
    estimate, in so far as that serves them. The generator is small and learns from the public images alone;
    published attacks have StyleGAN2 or BigGAN, learnt from millions.

    Attributes:
        steps: of Adam on the codes, and again on the features of every level.
        restarts: codes an image from which the search starts; the best after a third of the steps goes on.
        hold: public images by which it is decided where to stop; 0 = stop after the codes.
        code_rate: learning rate of the codes.
        feature_rate: learning rate of the features.
        pull: weight that holds a code to its class, beside the objective relative to that of the class's centre.
        prior_steps: steps of training the generator at 32 x 32 pixels; fewer in proportion for larger images.
    """

    requires = frozenset({"images", "public", "algorithm"})
    uses = frozenset({"labels", "key"})
    default_threat = "ciphertext-only"
    steps: int = 40
    restarts: int = 3
    hold: int = 20
    code_rate: float = 0.1
    feature_rate: float = 0.03
    pull: float = 1e-3
    prior_steps: int = Generator.steps

    def __post_init__(self) -> None:
        at_least(self, 1, "restarts")
        between(self, 1, MOST_STEPS, "steps", "prior_steps")
        at_least(self, 0, "hold", "pull")
        above_zero(self, "code_rate", "feature_rate")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the generator, which depends on the public images alone, and the linear estimate."""
        return {"generator": self._prior} | self._linear(view)

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return the generator's best explanation of every target's release."""
        given, view = view, decrypted(view)
        nets = self._prior.load(view, priors["generator"])
        known = view.public[~held_out(view.public)]
        trial, answers = self._trial(view, spawn(rng))
        search = self._search(view, nets, trial, answers, spawn(rng))
        released = torch.cat([view.images, answers])
        bank, bank_labels = self._bank(nets, known, search.labels, view.classes, rng)
        with torch.no_grad():
            linear = None
            if "linear" in priors and view is given:
                linear = LinearMap.from_tensors(priors["linear"]).apply(released, view.image_shape)
            read = nets.encoder(resize(released, view.image_shape) if linear is None else linear)[0]
        codes = search.codes(search.begin(bank, bank_labels, read, self.restarts), self.steps, self.code_rate)
        if len(trial):
            search.features(codes, self.steps, self.feature_rate)
        stops = [*search.stops, *blended(view, search, linear, released, trial.pixels)]
        best = best_stop(stops, trial.pixels)
        mine = slice(view.n_targets)
        note = (f"compares {search.signature.name}; stopped at {best.name}{'' if len(trial) else ' (not tried out)'}; "
                f"objective {best.objective[mine].mean():.2g}")
        return Reconstruction(best.images[mine], aligned=view.has_partner, note=note,
                              objective=torch.stack(search.trace)[:, mine])  # of all of it, wherever it is stopped

    def _linear(self, view: View) -> dict[str, Prior]:
        """Name the linear estimate; none without images to try it on, or of a release made from the whole set."""
        return {"linear": LinearOfSeen()} if self.hold and view.algorithm.defense.partnered else {}

    @property
    def _prior(self) -> Generator:
        return Generator(steps=self.prior_steps)

    def _trial(self, view: View, rng: torch.Generator) -> tuple[Images, Tensor]:
        """Return public images that the generator has not seen, and their releases under keys of one's own.

        There are none where the release is made from the whole set: that is too costly to run again.
        """
        trial = _spread(view.public[held_out(view.public)], self.hold)
        if not len(trial) or not view.algorithm.defense.partnered:
            return view.public[:0], view.images[:0]
        return trial, view.algorithm.protect(trial, rng).images

    def _search(self, view: View, nets: Nets, trial: Images, answers: Tensor, rng: torch.Generator) -> Search:
        signature = choose(view.algorithm, _spread(view.public, TRIED), view.released_shape, rng)
        wanted = signature.of_released(torch.cat([view.images, answers]))
        labels = (torch.cat([view.labels, trial.labels]) if "labels" in view.granted
                  else torch.full((len(wanted),), view.classes))
        return Search(nets.generator, signature, wanted, labels, self.pull)

    def _bank(self, nets: Nets, public: Images, labels: Tensor, classes: int,
              rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return codes `[K, latent]` of public images, and new ones of the classes wanted; and the classes `[K]`."""
        some = _spread(public, BANK)
        new = labels[torch.arange(BANK) % len(labels)]
        noise = torch.randn(BANK, self._prior.latent, generator=rng)
        with torch.no_grad():
            codes = torch.cat([nets.encoder(some.pixels)[0], nets.generator.codes(noise, new)])
        old = torch.full_like(some.labels, classes) if (labels == classes).all() else some.labels
        return codes, torch.cat([old, new])


def _spread(images: Images, most: int) -> Images:
    """Take at most so many images, spread evenly over all."""
    count = min(most, len(images))
    return images[torch.linspace(0, max(0, len(images) - 1), count).long()]
