"""Model inversion: the image of a public generator that a white-box victim takes for a class."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Attack, Prior, Priors, Reconstruction
from ppbench.attacks._asking import LOSSES, Loss, Victim, transformed
from ppbench.attacks._descent import MOST_STEPS
from ppbench.attacks._gan import Generator, Nets, held_out
from ppbench.attacks._gan_nets import GeneratorNet
from ppbench.bounds import above_zero, at_least, between
from ppbench.view import View

GENTLE, HARD = 0.9, 0.6  # smallest share of a side that is shown while codes descend, and when they are compared
_VALUES, _FEWEST = 2**18, 8  # of pixels in a pass, and images in it where these are more


@dataclass(frozen=True)
class ModelInversion(Attack):
    """Draw what the victim takes for a target's class (plug and play attacks, PPA: Struppek et al. 2022).

    The release is not looked at: what comes back is what the victim's weights tell of a class, a person where the
    classes are people. Codes of a generator trained on public images are chosen by the victim's confidence over random
    transformations, descend to the class, and the one of which the victim is the surest under stronger ones is drawn,
    for all targets of the class alike. The victim is asked as its clients ask it, with keys of one's own.

    Source: arXiv 2201.12179; the margin loss is that of PLG-MI (Yuan et al. 2023, arXiv 2302.09814). The generator is
    small and learns from the public images alone, and fewer codes are tried, where the published attack has StyleGAN2
    and thousands: raise `bank`, `candidates` and `prior_steps` where there is time. The intermediate features of the
    generator (IF-GMI, Qiu et al. 2024) are left alone.

    Attributes:
        steps: of Adam on the codes.
        bank: codes among which every class chooses.
        candidates: codes of a class that descend.
        checks: transformations by which codes are chosen, and candidates compared.
        rate: learning rate, in standard deviations of the codes.
        pull: weight that holds a code near the centre of all, beside the loss.
        loss: `poincare` or `margin`.
        prior_steps: steps of training the generator at 32 x 32 pixels; fewer in proportion for larger images.
    """

    requires = frozenset({"labels", "public", "algorithm", "model"})
    default_threat = "white-box"
    shows = "class"
    steps: int = 50
    bank: int = 400
    candidates: int = 4
    checks: int = 8
    rate: float = 0.2
    pull: float = 0.01
    loss: Loss = "margin"
    prior_steps: int = Generator.steps

    def __post_init__(self) -> None:
        at_least(self, 1, "bank", "candidates", "checks")
        between(self, 1, MOST_STEPS, "steps", "prior_steps")
        at_least(self, 0, "pull")
        above_zero(self, "rate")

    def priors(self, view: View) -> dict[str, Prior]:
        """Name the generator, which depends on the public images alone; `gan-inversion` has the same."""
        return {"generator": self._prior}

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Return for every target the best image of its class."""
        nets, victim = self._prior.load(view, priors["generator"]), Victim.of(view, rng)
        classes, mine = view.labels.unique(return_inverse=True)
        codes, labels = self._starts(view, nets, victim, classes, rng)
        codes, trace = self._descend(nets.generator, victim, codes, labels, rng)
        sure = self._confidence(nets.generator, victim, codes, rng).gather(1, labels[:, None]).view(-1, len(classes))
        best = sure.argmax(0) * len(classes) + torch.arange(len(classes))
        note = f"the victim is {sure.amax(0).mean():.0%} sure on average, under transformations"
        return Reconstruction(drawn(nets.generator, codes[best])[mine], note=note, objective=trace[:, best][:, mine])

    @property
    def _prior(self) -> Generator:
        return Generator(steps=self.prior_steps)

    def _starts(self, view: View, nets: Nets, victim: Victim, classes: Tensor,
                rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the codes `[candidates * classes, latent]` of which the victim is the surest, and their classes.

        Half of the bank are public images, as far as there are so many; all others are new.
        """
        known = view.public[~held_out(view.public)]
        some = known.pixels[torch.randperm(len(known), generator=rng)[: self.bank // 2]]
        new = max(self.bank, self.candidates) - len(some)
        with torch.no_grad():
            noise, anyone = torch.randn(new, self._prior.latent, generator=rng), torch.full((new,), view.classes)
            bank = torch.cat([nets.encoder(some)[0], nets.generator.codes(noise, anyone)])
        sure = self._confidence(nets.generator, victim, bank, rng)[:, classes]
        best = sure.topk(self.candidates, dim=0).indices  # [candidates, classes]
        return bank[best.flatten()], classes.repeat(len(best))

    def _descend(self, generator: GeneratorNet, victim: Victim, codes: Tensor, labels: Tensor,
                 rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the codes `[N, latent]` after all steps, and the victim's loss `[steps + 1, N]` before each and after.

        Every loss is of other transformations and keys; the pull to the centre is not in it.
        """
        everyone = torch.tensor(generator.classes)
        centre, spread = generator.centre(everyone), (generator.spread(everyone) / 2).exp()
        values = ((codes - centre) / spread).requires_grad_()
        optimiser = torch.optim.Adam([values], self.rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)

        def loss_of(rows: slice) -> Tensor:
            shown = transformed(generator(centre + spread * values[rows]), GENTLE, rng)
            return LOSSES[self.loss](victim.logits(shown, rng), labels[rows])

        parts, trace = _parts(generator, len(values)), []
        for _ in range(self.steps):
            optimiser.zero_grad()
            losses = []
            for rows in parts:
                with torch.enable_grad():
                    loss = loss_of(rows)
                    (loss + self.pull * values[rows].square().mean(1)).sum().backward()
                losses.append(loss.detach())
            optimiser.step()
            schedule.step()
            trace.append(torch.cat(losses))
        with torch.no_grad():
            trace.append(torch.cat([loss_of(rows) for rows in parts]))
        return (centre + spread * values).detach(), torch.stack(trace)

    @torch.no_grad()
    def _confidence(self, generator: GeneratorNet, victim: Victim, codes: Tensor, rng: torch.Generator) -> Tensor:
        """Return the victim's mean probabilities `[N, classes]` of what codes `[N, latent]` draw, transformed hard."""
        return torch.cat([confidence(victim, generator(codes[rows]), self.checks, HARD, rng)
                          for rows in _parts(generator, len(codes))])


@torch.no_grad()
def confidence(victim: Victim, images: Tensor, times: int, smallest: float, rng: torch.Generator) -> Tensor:
    """Return the mean probabilities `[N, classes]` of images, transformed in so many ways."""
    return torch.stack([victim.logits(transformed(images, smallest, rng), rng).softmax(1)
                        for _ in range(times)]).mean(0)


@torch.no_grad()
def drawn(generator: GeneratorNet, codes: Tensor) -> Tensor:
    """Return the images `[N, C, H, W]` of codes `[N, latent]`."""
    return torch.cat([generator(codes[rows]) for rows in _parts(generator, len(codes))])


def _parts(generator: GeneratorNet, count: int) -> list[slice]:
    size = max(_FEWEST, _VALUES // math.prod(generator.canvas.shape))
    return [slice(first, first + size) for first in range(0, count, size)]
