"""How sure a network is of images that are sent to it as its clients send them."""

import torch
from torch import Tensor

from ppbench.attacks._likelihoods import sureness
from ppbench.codec import to_bytes8
from ppbench.data import Images
from ppbench.defense import Keys, keys_for_more
from ppbench.device import device
from ppbench.model import Model
from ppbench.seeding import seeded, spawn
from ppbench.view import Algorithm, View

TIMES = 8  # an image is sent where every time it looks different
_BATCH = 256
_PROBED = 4  # images by which it is seen whether it does


def sure_of(model: Model, sent: Tensor, labels: Tensor) -> Tensor:
    """Return `[N, 2]` float64: how sure a network is of the labels of images as they are sent, and mirrored."""
    with seeded(0), torch.no_grad():
        net = model.build().eval().to(device())
        views = [torch.cat([net(x.to(device())).float().cpu() for x in shown.split(_BATCH)])
                 for shown in (sent, sent.flip(3))]
    return sureness(torch.stack(views, 1), labels)


def sure_of_shadow(model: Model, keys: Keys | None, images: Images, algorithm: Algorithm,
                   rng: torch.Generator) -> Tensor:
    """Say how sure a network of one's own is of images' labels, `[N, 2]`, under keys of one's own.

    Where nothing but chance makes every sent image look different (fresh keys, say), it is the mean over `TIMES`.
    """
    times = 1 if keeps(algorithm) or _constant(images[:_PROBED], keys, algorithm, rng) else TIMES
    found = [sure_of(model, _sent(images, keys, algorithm, rng), images.labels) for _ in range(times)]
    return torch.stack(found).mean(0)


def sure_of_victim(view: View, images: Images, sent: Tensor, rng: torch.Generator) -> Tensor:
    """Say how sure the victim is of images' labels, `[N, 2]`, as `sure_of_shadow` says it of a shadow.

    Args:
        view: holds the victim.
        images: plain.
        sent: as clients with keys that are kept send them; where no key is kept, anybody can send them as well.
        rng: draws keys of one's own.
    """
    if keeps(view.algorithm):
        return sure_of(view.model, sent, images.labels)
    return sure_of_shadow(view.model, None, images, view.algorithm, rng)


def keeps(algorithm: Algorithm) -> bool:
    """Say whether clients use a key more than once, which nobody else has."""
    return algorithm.key_scope in ("client", "global")


def _constant(images: Images, keys: Keys | None, algorithm: Algorithm, rng: torch.Generator) -> bool:
    one, other = (_sent(images, keys, algorithm, rng) for _ in range(2))
    return torch.equal(one, other)


def _sent(images: Images, keys: Keys | None, algorithm: Algorithm, rng: torch.Generator) -> Tensor:
    defense = algorithm.defense
    mine = keys_for_more(defense, keys, algorithm.key_scope, len(images), images.shape, spawn(rng), algorithm.clients)
    found = defense.query(images.pixels, mine, spawn(rng))
    return to_bytes8(found) if algorithm.quantise == 8 else found
