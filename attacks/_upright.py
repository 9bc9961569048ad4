"""Which way round is an image, is it a negative, which colour is red? Told by what public images look like."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppbench.attack import Prior
from ppbench.attacks._descent import Descent, copied, descend
from ppbench.attacks._pairs import held_out, learnt
from ppbench.attacks._states import States, states_of
from ppbench.codec import Tensors, under
from ppbench.defense import Pieces
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import seeded
from ppbench.view import View

_SIDE = 16  # pixels of the thumbnails that are looked at, at most
_CHOICES = 8  # states of an image that are compared at a time
_BATCH = 48
_HELD = 256
_RATE = 3e-3
_MIRROR = 4  # among the turns: mirrored left to right


@dataclass(frozen=True)
class UprightPrior(Prior):
    """Train a network to tell public images from the same ones turned, negated and recoloured.

    Attributes:
        turned: images may be turned and mirrored.
        negated: and negated.
        recoloured: and their channels exchanged.
        steps: optimiser steps.
        width: channels of the network's first layer.
    """

    needs = frozenset({"public"})
    turned: bool
    negated: bool
    recoloured: bool
    steps: int
    width: int = 24

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return weights (`net.*`), `objective` (held-out losses) and `told`.

        That is the share of held-out images that are found in the right state, or in its mirror image.
        """
        channels = view.image_shape[0]
        states = self._states(channels)
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            net = _network(channels, self.width)
            small = thumbnails(view.public.pixels.cpu())
            kept, lessons = small[held_out(len(small))][:_HELD], small[learnt(len(small))]
            asked = _choices(kept, states, own)

            def judge() -> float:
                with torch.no_grad():
                    return float(_loss(net, asked))

            rows = shuffled_passes(len(lessons), min(_BATCH, len(lessons)), self.steps, own)
            course = descend(net, (_choices(lessons[some], states, own) for some in rows),
                             lambda some: _loss(net, some), judge, Descent(self.steps, _RATE))
            told = _told(net.eval(), kept, states)
        return {"objective": torch.tensor(course.losses), "told": torch.tensor(told)} \
            | {f"net.{name}": value for name, value in copied(net).items()}

    def load(self, found: Tensors, channels: int) -> nn.Module:
        """Rebuild what `train` found."""
        with seeded(0):
            net = _network(channels, self.width)
        net.load_state_dict(under(found, "net."))
        return net.eval()

    def _states(self, channels: int) -> States:
        return states_of(Pieces(1, True, "kept", self.turned, self.negated, self.recoloured), channels)


@torch.no_grad()
def upright(images: Tensor, states: States, net: nn.Module, groups: Tensor) -> Tensor:
    """Bring images into the state in which the network finds them most like public ones.

    Args:
        images: `[n, C, H, W]` in [0, 1].
        states: that an image as a whole may be in; those that would change its shape are left out.
        net: gives each image a score.
        groups: `[n]` int64: images of one group are in one state.

    Returns:
        `[n, C, H, W]`.
    """
    square = images.shape[2] == images.shape[3]
    kept = [n for n in range(len(states)) if square or int(states.turns[n]) % 2 == 0]
    scores = _scores(net, thumbnails(images), states, kept)
    group = groups.unique(return_inverse=True)[1]
    best = torch.zeros(len(kept), int(group.max()) + 1).index_add_(1, group, scores).argmax(0)[group]
    found = images.clone()
    for n in best.unique().tolist():
        found[best == n] = _put(images[best == n], states, kept[n])
    return found


def thumbnails(images: Tensor) -> Tensor:
    """Shrink images to squares of at most 16 pixels, which may be turned."""
    side = min(_SIDE, *images.shape[2:])
    return F.adaptive_avg_pool2d(images, side)


def _put(images: Tensor, states: States, state: int) -> Tensor:
    """Bring whole images into a state."""
    turn = int(states.turns[state])
    turned = images.rot90(turn % 4, (2, 3))
    turned = (turned.flip(3) if turn >= 4 else turned)[:, states.colours[state]]
    return 1 - turned if bool(states.negative[state]) else turned


def _scores(net: nn.Module, small: Tensor, states: States, kept: Sequence[int]) -> Tensor:
    """Say how much thumbnails look like public images in each state, `[states, n]`."""
    return torch.stack([net(_put(small, states, n))[:, 0] for n in kept])


def _told(net: nn.Module, small: Tensor, states: States) -> float:
    """Return the share of upright thumbnails that no state but a mirror image looks better in."""
    with torch.no_grad():
        best = _scores(net, small, states, range(len(states))).argmax(0)
    return float(torch.isin(best, torch.tensor([0, *_mirrored(states)])).double().mean())


def _mirrored(states: States) -> list[int]:
    """Number the state in which an image is mirrored left to right and nothing else, if it is one."""
    return [n for n in range(len(states)) if int(states.turns[n]) == _MIRROR and not bool(states.negative[n])
            and torch.equal(states.colours[n], states.colours[0])]


def _choices(images: Tensor, states: States, rng: torch.Generator) -> Tensor:
    """Return each image, then in some other states: `[n, 1 + others, C, s, s]`; half of all are mirrored first.

    Left and right are not told apart.
    """
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1, generator=rng) < 0.5, images, images.flip(3))
    rivals = torch.tensor([n for n in range(1, len(states)) if n not in _mirrored(states)])
    others = rivals[torch.randperm(len(rivals), generator=rng)[: _CHOICES - 1]].tolist()
    return torch.stack([mirrored, *(_put(mirrored, states, n) for n in others)], 1)


def _loss(net: nn.Module, choices: Tensor) -> Tensor:
    scores = net(choices.flatten(0, 1)).view(choices.shape[:2])
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))


def _network(channels: int, width: int) -> nn.Module:
    def layer(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU())

    return nn.Sequential(layer(channels, width), layer(width, 2 * width), layer(2 * width, 4 * width),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, 1))
