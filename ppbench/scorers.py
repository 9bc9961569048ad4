"""What estimates of the targets are held against: for each column a function from them to one score a target."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.data import Images, Split
from ppbench.judge import Judge
from ppbench.metrics import identification, identification_unordered, psnr, ssim
from ppbench.perceptual import Lpips, Net, Trunk, find_trunk
from ppbench.piq_scores import piq_scorers
from ppbench.quality import METRICS, choose, sentences
from ppbench.verifier import Album, Verifier

Scorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScoreSettings:
    """What is measured, and how.

    Attributes:
        groups: `ssim`, `psnr`, `lpips`, `identification`, `recognition`, `verification`, `pieces`, `quality`.
        lpips_trunk: LPIPS's network.
        distractors: gallery images beside the targets, or all there are.
    """

    groups: list[str]
    lpips_trunk: Net = "squeeze"
    distractors: int = 1000


@dataclass(frozen=True)
class Yardstick:
    """What every estimate of the same targets is held against, whatever the defense.

    Attributes:
        images: the split; the targets are its first private images.
        targets: how many private images are scored.
        settings: what is measured.
        judge: weights of the classifier trained on public images.
        verifier: weights of the network that tells people apart.
    """

    images: Split
    targets: int
    settings: ScoreSettings
    judge: Tensors | None = None
    verifier: Tensors | None = None

    @property
    def private(self) -> Tensor:
        """The targets `[n_targets, C, H, W]`."""
        return self.images.private.pixels[: self.targets]

    @property
    def labels(self) -> Tensor:
        """The targets' labels `[n_targets]`."""
        return self.images.private.labels[: self.targets]

    @property
    def known(self) -> bool:
        """Whether public images, from which the judge learns, show any of the targets' classes."""
        return bool(torch.isin(self.labels, self.images.public.labels).any())

    @property
    def gallery(self) -> Tensor:
        """The targets, then the distractors: other private images and test images, none of the public ones."""
        everyone = torch.cat([self.images.private.pixels, self.images.test.pixels])
        return everyone[: self.gallery_size]

    @property
    def gallery_size(self) -> int:
        """How many images an estimate is looked for among."""
        others = len(self.images.private) - self.targets + len(self.images.test)
        return self.targets + min(self.settings.distractors, others)

    def album(self) -> Album | None:
        """Read all photos of private people, private ones, the targets first, and test images; None: no verifier."""
        if "verification" not in self.settings.groups or self.verifier is None:
            return None
        parts = (self.images.private, self.images.test)
        photos = Images(*(torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "labels", "ids")))
        return Album(Verifier(self.verifier), photos, self.targets)

    def lpips(self) -> Lpips | str | None:
        """Return LPIPS, the reason why it cannot be measured, or None where it was not asked for."""
        if "lpips" not in self.settings.groups:
            return None
        trunk = find_trunk(self.settings.lpips_trunk)
        return Lpips(trunk) if isinstance(trunk, Trunk) else trunk


@dataclass(frozen=True)
class Scorers:
    """The functions from estimates to scores.

    Attributes:
        by_column: column -> function of estimates matched to the targets, `[n_targets, C, H, W]` -> `[n_targets]`.
        lpips: LPIPS, or why it is not measured.
        plain: column -> what the originals score, where that is not the perfect score.
        reasons: why some of what was asked for is not measured.
    """

    by_column: dict[str, Scorer]
    lpips: Lpips | str | None = None
    plain: Tensors = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def scorers(yardstick: Yardstick, aligned: bool) -> Scorers:
    """Return what was asked for and can be measured.

    Args:
        yardstick: the targets, and what they are compared by.
        aligned: estimates are of known targets; otherwise of whichever they were matched to.
    """
    groups, private, lpips, album = yardstick.settings.groups, yardstick.private, yardstick.lpips(), yardstick.album()
    found: dict[str, Scorer] = {}
    if "ssim" in groups:
        found["ssim"] = lambda x: ssim(x, private)
    if "psnr" in groups:
        found["psnr"] = lambda x: psnr(x, private)
    if isinstance(lpips, Lpips):
        distance = lpips.against(private)
        found["lpips"] = lambda x: distance(x).detach()
    if "identification" in groups:
        retrieve = identification if aligned else identification_unordered
        gallery = yardstick.gallery
        found["identification"] = lambda x: retrieve(x, gallery)
        if yardstick.judge is not None:
            judge = Judge(yardstick.judge)
            features = judge.features(gallery)
            found["identification_feature"] = lambda x: retrieve(judge.features(x), features)
    if "recognition" in groups and yardstick.judge is not None and yardstick.known:
        seer, labels = Judge(yardstick.judge), yardstick.labels
        found["recognition"] = lambda x: (seer.predict(x) == labels).double()
    plain: Tensors = {}
    if album is not None:
        found["verification"], plain["verification"] = album.verified, album.plain
    reasons: list[str] = []
    if "quality" in groups:
        names, missing = choose((private.shape[1], private.shape[2], private.shape[3]), len(private))
        found |= (quality := piq_scorers(names, private))
        plain |= {name: quality[name](private) for name in names if METRICS[name].looks_at == "estimates"}
        reasons = sentences(missing)
    return Scorers(found, lpips, plain, reasons)


def mean_of(column: str, scores: Tensor) -> float:
    """Average over the targets; for `verification` over those that have another photo."""
    return float(scores.nanmean() if column == "verification" else scores.mean())
