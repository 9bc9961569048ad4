"""Settings of gradient matching: the published attacks by name, and ours.

Published settings are those of the papers, or of the `breaching` library where a paper leaves them open; lengths in
units of normalised images (about a quarter of the range of pixels) are turned into units of that range.
"""

from dataclasses import dataclass
from typing import Literal

Objective = Literal["cosine", "euclidean"]
Optimiser = Literal["adam", "l-bfgs", "rehearsed"]
Sign = Literal["none", "soft", "hard"]
Schedule = Literal["constant", "steps", "cosine"]
Init = Literal["grey", "noise", "tiles", "public"]
Labels = Literal["inferred", "optimised"]
Where = Literal["never", "trained", "always", "rehearsed"]
Preset = Literal["ppbench", "dlg", "idlg", "inverting-gradients", "modern", "see-through", "gradvit", "april"]


@dataclass(frozen=True)
class Settings:
    """What is minimised, and how.

    Attributes:
        objective: between the gradients: 1 - cosine, or the squared distance relative to the given one's square.
        optimiser: Adam (Kingma & Ba 2015), limited-memory BFGS (Liu & Nocedal 1989), or whichever of them a rehearsal
            shows to recover more; L-BFGS of smooth networks only.
        steps: of the optimiser.
        learning_rate: of Adam at its highest, in units of the pixel range [0, 1].
        sign: of the gradient before Adam sees it: hard, soft (tanh, softer to the end), or the gradient itself.
        schedule: of the learning rate: constant, times a tenth after 3/8, 5/8 and 7/8 of the steps, or half a cosine.
        warm_up: steps over which the learning rate rises.
        boxed: pixels stay in [0, 1].
        init: starts: grey or the mean of protected public images with slight noise, noise, or tiles of noise. Restarts
            from `public` are images drawn at random with the spectrum of public ones: where steps from the mean lead to
            a wrong image, they do so again from any other point near it.
        spectrum: Adam steps in the spectrum of protected public images, from their mean (`_spectrum`): of `trained`
            networks, which tell public images apart; `always` or `never`; or, of others, as a rehearsal shows.
        labels: in closed form from the last layer, or optimised with the images.
        tv: weight of the total variation, a mean over pixels.
        tv_end: share of it that is left at the last step; it falls with the learning rate.
        relative: the total variation weighs in proportion to what is left between the gradients: it is strong where
            little is explained, and gives way as more is.
        lossy_tv: weight of the total variation, beside the other, where a defense took part of the gradients away: many
            images explain what is left.
        opponents: the total variation counts differences between the colour channels, too (double opponents), and is
            isotropic.
        seams: weight of the differences across the seams of patches (Hatamizadeh et al. 2022).
        norm: weight of the mean square of pixels around grey.
        statistics: weight of the distance from the running statistics of batch normalisation (Yin et al. 2021).
        features: weight of the squared distance from the last layer's inputs as its gradients tell them, relative to
            their own square; it falls with the learning rate.
        told_errors: of single images, the loss's derivatives by the logits are those that the last bias's gradient is,
            not those of the image that is tried.
        positions: weight of the cosine distance of the position embeddings' gradients alone (Lu et al. 2022).
        group: weight of the distance from the mean of all restarts, each shifted to fit (Yin et al. 2021).
        noise: Langevin noise, in multiples of the learning rate.
        restarts: independent starts for every update; 0 = eight of networks that tell public images apart, one of
            others.
        cull: share of the steps after which only the best start goes on; until then, the worse half is dropped at equal
            intervals (successive halving, Karnin et al. 2013). 1 = all go on to the end.
        generator: share of the steps that are taken in the codes and features of a generator of public images; where
            they end, the others start. 0 = none.
        closed_form: solve for what algebra gives, and optimise the rest only.
        fast: compute in bfloat16 up to the last fifth of the steps.
        spans: steps by the spans in which layers' inputs lie (`_spans`), of single images, before the others.
        rehearsals: public images on which the attack is tried first (`_rehearsal`), rounded up to whole updates.
    """

    objective: Objective = "cosine"
    optimiser: Optimiser = "adam"
    steps: int = 400
    learning_rate: float = 0.1
    sign: Sign = "hard"
    schedule: Schedule = "cosine"
    warm_up: int = 0
    boxed: bool = True
    init: Init = "grey"
    spectrum: Where = "never"
    labels: Labels = "inferred"
    tv: float = 0.0
    tv_end: float = 1.0
    relative: bool = False
    lossy_tv: float = 0.0
    opponents: bool = False
    seams: float = 0.0
    norm: float = 0.0
    statistics: float = 0.0
    features: float = 0.0
    told_errors: bool = False
    positions: float = 0.0
    group: float = 0.0
    noise: float = 0.0
    restarts: int = 1
    cull: float = 0.1
    generator: float = 0.0
    closed_form: bool = True
    fast: bool = False
    spans: int = 0
    rehearsals: int = 0


# Units of a normalised image are a quarter of the pixel range; a weight of the total variation in them is four times
# as large in pixels, one of the mean square sixteen times.
PRESETS: dict[Preset, Settings] = {
    # ours: closed forms, then what the cosine and the last layer say, as a rehearsal shows
    "ppbench": Settings(optimiser="rehearsed", spectrum="rehearsed", tv=1.0, relative=True, lossy_tv=0.003,
                        features=0.1, told_errors=True, rehearsals=8, restarts=0, cull=0.5, spans=200),
    # Zhu et al. 2019, "Deep leakage from gradients" (arXiv 1906.08935)
    "dlg": Settings("euclidean", "l-bfgs", 1200, boxed=False, init="noise", labels="optimised", closed_form=False),
    # Zhao et al. 2020, "iDLG" (arXiv 2001.02610)
    "idlg": Settings("euclidean", "l-bfgs", 1200, boxed=False, init="noise", closed_form=False),
    # Geiping et al. 2020, "Inverting gradients" (arXiv 2003.14053)
    "inverting-gradients": Settings(steps=24000, learning_rate=0.025, schedule="steps", init="noise", tv=0.8,
                                    closed_form=False),
    # Geiping's `breaching`, "modern"
    "modern": Settings(steps=24000, learning_rate=0.025, sign="soft", warm_up=50, init="tiles", tv=0.4, opponents=True,
                       features=0.1, closed_form=False),
    # Yin et al. 2021, "See through gradients" (arXiv 2104.07586)
    "see-through": Settings("euclidean", steps=20000, learning_rate=0.025, sign="none", warm_up=50, init="noise",
                            tv=4e-4, norm=1.6e-5, statistics=0.1, group=0.01, noise=0.01, restarts=8,
                            closed_form=False),
    # Hatamizadeh et al. 2022, "GradViT" (arXiv 2203.11894), without its prior of a second, trained network
    "gradvit": Settings("euclidean", steps=24000, learning_rate=0.025, sign="none", warm_up=50, init="noise", tv=4e-4,
                        norm=1.6e-5, seams=1e-2, closed_form=False),
    # Lu et al. 2022, "APRIL" (arXiv 2112.14087): the closed form; where it fails, positions weigh on their own
    "april": Settings("euclidean", steps=2000, learning_rate=0.025, sign="none", init="noise", positions=1.0),
}
