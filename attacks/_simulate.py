"""Plain/protected pairs: made by the adversary with keys of their own, or known under the victim's key."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppbench.data import Images
from ppbench.defense import resize
from ppbench.view import View

ANYONE = -1
"""In place of a client: all of them together."""
NOBODY = -2
"""In place of a client: those of whose keys no pairs tell."""


@dataclass(frozen=True)
class Simulated:
    """Pairs to learn from: row i of each tensor belongs to row i of the others.

    Attributes:
        plain: `[n, C, H, W]` in [0, 1].
        released: `[n, c, h, w]` in [0, 1], what the defense makes of them.
        labels: `[n]` int64; -1 = unknown.
    """

    plain: Tensor
    released: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, rows: Tensor) -> "Simulated":
        return Simulated(self.plain[rows], self.released[rows], self.labels[rows])


def simulate(view: View, public: Images, rng: torch.Generator) -> Simulated:
    """Protect plain images with fresh keys (capability `algorithm`), as the client would.

    Where released images have no partners (`Defense.partnered` is False: costly, run it once), each is paired with
    one plain image of its class, by the assignment of least squared pixel error; some may be left over.

    Args:
        view: holds the algorithm.
        public: the adversary's own images.
        rng: draws keys and noise: anew at every call.
    """
    release = view.algorithm.protect(public, rng)
    if release.source is not None:
        return Simulated(public.pixels[release.source], release.images, public.labels[release.source])
    made, own = _assigned(release.images, release.labels, public)
    return Simulated(public.pixels[own], release.images[made], public.labels[own])


def known_pairs(view: View, client: int = ANYONE) -> Simulated | None:
    """Return the known pairs under the victim's key; None where the threat model grants none, or there are none.

    Args:
        view: may hold pairs.
        client: whose key, where clients have keys of their own.
    """
    if "pairs" not in view.granted:
        return None
    pairs = view.pairs
    rows = torch.arange(len(pairs.plain))
    if client != ANYONE and pairs.clients is not None:
        rows = rows[pairs.clients == client]
    return Simulated(pairs.plain[rows], pairs.protected[rows], torch.full((len(rows),), -1)) if len(rows) else None


def joined(parts: list[Simulated]) -> Simulated:
    """Join several sets of pairs into one."""
    return Simulated(torch.cat([part.plain for part in parts]), torch.cat([part.released for part in parts]),
                     torch.cat([part.labels for part in parts]))


def named(name: str, client: int) -> str:
    """Name what was learnt of a client's key, or of everyone's or nobody's."""
    return name if client in (ANYONE, NOBODY) else f"{name} of client {client}"


def _assigned(released: Tensor, labels: Tensor, public: Images) -> tuple[Tensor, Tensor]:
    """Return rows of the release and of the plain images that go together, class by class."""
    fitted, plain = resize(released, public.shape).flatten(1), public.pixels.flatten(1)
    made, own = [], []
    for label in labels.unique().tolist():
        theirs, ours = ((of == label).nonzero()[:, 0] for of in (labels, public.labels))
        first, second = linear_sum_assignment(torch.cdist(fitted[theirs], plain[ours]).square().numpy())
        made.append(theirs[torch.from_numpy(first)])
        own.append(ours[torch.from_numpy(second)])
    return torch.cat(made), torch.cat(own)
