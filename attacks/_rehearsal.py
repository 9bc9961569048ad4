"""A rehearsal: the attack on public images, whose originals the adversary has, before the attack on anybody else's.

Which search recovers most depends on the network, the batch and the defense; so does how much of what it finds is to be
believed. The server runs the clients' own protocol on images of its own, tries every search on what comes out, and
keeps the one whose estimates were closest; one that finds everything ends the rehearsal. Of coefficients that the
rehearsal got wrong only that share is kept which brought estimates closest to the originals (linear shrinkage, as a
Wiener filter's), the rest is the public mean; less of them, or nothing, where that looks more like the originals; all
where most estimates are right already, and a few are not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ppbench.attacks._bands import shares
from ppbench.attacks._gradient_match import Scene, recovered, solved
from ppbench.attacks._gradient_settings import Settings, Where
from ppbench.attacks._spectrum import Spectrum
from ppbench.data import Images
from ppbench.defense import Release, resize
from ppbench.lessons import lesson_of
from ppbench.matching import assign
from ppbench.metrics import PSNR_CAP, SSIM_WINDOW, psnr, ssim
from ppbench.model import Update
from ppbench.seeding import spawn
from ppbench.updates import client_update

SMOOTH = (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus)
KINKED = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.MaxPool2d)
GAIN = 0.01  # of SSIM, that shrinkage must bring half the images or more: it spoils those that are right already
LEFT = 0.001  # of likeness, at most, where a search finds everything
PARTS = (1.0, 0.5, 0.0)  # of the shares that bring estimates closest: less of them may look more like the originals


@dataclass(frozen=True)
class Shrinkage:
    """How much of an estimate is believed.

    Attributes:
        spectrum: its mean stands for what is not believed.
        shares: `[c, h, w]` in [0, 1], of the coefficients.
    """

    spectrum: Spectrum
    shares: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Shrink images `[..., c, h, w]`."""
        mean = self.spectrum.mean
        return mean + self.spectrum.images(self.shares * self.spectrum.coefficients(images - mean))


@dataclass(frozen=True)
class Way:
    """What a rehearsal chose.

    Attributes:
        settings: of the search.
        shrinkage: of what it finds; None = it is believed as it is.
        note: what was chosen, in words; empty where nothing was rehearsed.
    """

    settings: Settings
    shrinkage: Shrinkage | None = None
    note: str = ""


def ways(how: Settings, scene: Scene) -> list[Settings]:
    """Return the searches among which a rehearsal chooses, the first without any."""
    smooth = replace(how, optimiser="l-bfgs", spectrum="never")
    if how.optimiser == "l-bfgs":
        return [smooth]
    open_to: dict[Where, list[Where]] = {"trained": ["always" if scene.trained else "never"],
                                         "rehearsed": ["always"] if scene.trained else ["never", "always"]}
    found = [replace(how, optimiser="adam", spectrum=where) for where in open_to.get(how.spectrum, [how.spectrum])]
    return [*found, smooth] if how.optimiser == "rehearsed" and _smooth(scene.net) else found


def rehearse(how: Settings, scene: Scene) -> Way:
    """Choose a search, and how much of what it finds is believed."""
    open_to = ways(how, scene)
    update, pool = scene.view.update, scene.view.public
    size = update.batch * update.clients
    count = math.ceil(how.rehearsals / size) * size
    if count == 0 or len(pool) < count:
        return Way(open_to[0])
    scene = replace(scene, rng=spawn(scene.rng))
    sent, truth, labels = _staged(pool[torch.randperm(len(pool), generator=scene.rng)[:count]], scene)
    problem = scene.problem(sent, size, slice(None), labels if "labels" in scene.view.granted else None)
    algebra = solved(problem, how, scene.view.released_shape)
    rows = torch.arange(len(problem)) if algebra is None else algebra.open
    if len(rows) == 0:
        return Way(open_to[0])
    originals = truth.unflatten(0, (-1, size))[rows].flatten(0, 1)
    tried: list[tuple[float, Way]] = []
    for settings in reversed(open_to):  # l-bfgs first, which finds everything if any does
        found = recovered(problem, settings, scene, algebra).images[rows].flatten(0, 1).clamp(0, 1)
        belief, value = _believed(scene.spectrum, found[assign(found, originals, size)], originals)
        tried.append((value, Way(settings, belief)))
        if value > 1 - LEFT:
            break
    way = max(tried, key=lambda one: one[0])[1]
    return replace(way, note=f"{_told(way)}: {_rated(tried)} {len(originals)} public images")


def _believed(spectrum: Spectrum, found: Tensor, truth: Tensor) -> tuple[Shrinkage | None, float]:
    """Choose how much of estimates `[N, c, h, w]` is believed; return what is left of their mean likeness, too."""
    best, chosen, fit = likeness(found, truth), None, fitted(spectrum, found, truth)
    for part in PARTS:
        less = replace(fit, shares=part * fit.shares)
        shrunk = likeness(less(found).clamp(0, 1), truth)
        if (shrunk - best).median() > GAIN:
            best, chosen = shrunk, less
    return chosen, float(best.mean())


def fitted(spectrum: Spectrum, found: Tensor, truth: Tensor) -> Shrinkage:
    """Fit shares, one for all coefficients of a principal colour that are about as fine.

    Args:
        spectrum: of images like these.
        found: `[N, c, h, w]`, estimates.
        truth: `[N, c, h, w]`, of these images.
    """
    mine, true = (spectrum.coefficients(images - spectrum.mean) for images in (found, truth))
    return Shrinkage(spectrum, shares((mine * true).sum(0), mine.square().sum(0)))


def _staged(images: Images, scene: Scene) -> tuple[Update, Tensor, Tensor]:
    """Run the clients' protocol on images; return what is sent, the released images behind it and their labels."""
    view, defense = scene.view, scene.view.algorithm.defense
    if defense.partnered:
        release = view.algorithm.protect(images, scene.rng)
    else:
        release = Release(resize(images.pixels, view.released_shape), images.labels, None)
    lesson, sent = lesson_of(release), view.update
    update = client_update(view.model, lesson.images, lesson.goals, batch=sent.batch, local_steps=sent.local_steps,
                           learning_rate=sent.learning_rate, bn_train=sent.bn_train,
                           label_smoothing=sent.label_smoothing, temperature=lesson.temperature)
    return defense.protect_update(update, scene.rng), release.images, release.labels


def likeness(found: Tensor, truth: Tensor) -> Tensor:
    """Return the SSIM of each pair `[N]`; of images that are smaller than its window, a PSNR of 60 dB counts as 1."""
    small = min(truth.shape[2:]) < SSIM_WINDOW
    return psnr(found, truth).div(PSNR_CAP) if small else ssim(found, truth)


def _smooth(net: nn.Module) -> bool:
    """Say whether all of a network's layers that are known to be smooth or not are smooth, and some are."""
    layers = list(net.modules())
    return any(isinstance(one, SMOOTH) for one in layers) and not any(isinstance(one, KINKED) for one in layers)


def _rated(tried: Sequence[tuple[float, Way]]) -> str:
    return "finds" if tried[-1][0] > 1 - LEFT else f"best of {len(tried)} on"


def _told(way: Way) -> str:
    how = way.settings
    where = " in the spectrum" if how.spectrum == "always" else ""
    believed = "" if way.shrinkage is None else ", shrunk" if way.shrinkage.shares.any() else ", nothing believed"
    return f"{how.optimiser}{where}{believed}"
