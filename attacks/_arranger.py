"""A learned arranger of shuffled pieces as a prior: trained on public images that it shuffles itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.attack import Prior
from ppbench.attacks._arranger_net import Arranger, mixed
from ppbench.attacks._beliefs import assigned, doubly_stochastic
from ppbench.attacks._descent import Descent, copied, descend
from ppbench.attacks._inverter import loss_of
from ppbench.attacks._pairs import augmented, held_out, learnt
from ppbench.blocks import cut, join, permutations, permute_rows
from ppbench.codec import Tensors, under
from ppbench.data import Images
from ppbench.defense import Pieces
from ppbench.minibatches import shuffled_passes
from ppbench.seeding import seeded
from ppbench.view import View

MOST_PIECES = 256  # of an image: all pairs of them are compared
_PAIRS = 2**18  # of pieces, in a batch
_VALUES = 2**22  # of pixels, in a batch
_HELD = 256  # images on which iterates are compared, at most


@dataclass(frozen=True)
class ArrangerPrior(Prior):
    """Train a network to put the pieces of public images back.

    Attributes:
        size: side of a piece in pixels.
        steps: optimiser steps.
        batch: images in a step; fewer where they have many pieces.
        width: of a token; half of it are the values that are compared of two pieces.
        depth: blocks of the transformer.
        rate: highest learning rate (of `descend`).
        amp: learn in bfloat16.
    """

    needs = frozenset({"public"})
    size: int
    steps: int
    batch: int
    width: int
    depth: int
    rate: float
    amp: bool = False

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return weights (`net.*`), `objective` (held-out losses), `best` step of all, and whether to choose (`hard`).

        A piece goes to its most probable place (`hard`), or to all places in proportion, whichever was nearer to the
        held-out images.
        """
        public, shape = view.public, view.image_shape
        with torch.enable_grad(), seeded(int(torch.randint(2**62, (), generator=rng))) as own:
            net = Arranger(shape, self.size, self.width, self.depth).to(public.pixels.device)
            kept = public.pixels[held_out(len(public))][:_HELD]
            pieces, places = shuffled(kept, self.size, own)

            def judge() -> float:
                with torch.no_grad():
                    net.eval()
                    rows = torch.arange(len(pieces)).split(_at_once(pieces))
                    return sum(float(net.loss(pieces[k], places[k])) * len(k) for k in rows) / len(pieces)

            course = descend(net, self._batches(public[learnt(len(public))], own),
                             lambda some: net.loss(*some), judge, Descent(self.steps, self.rate, self.amp))
            losses = [float(loss_of(arranged(net, pieces, hard), kept).mean()) for hard in (False, True)]
        return {"objective": torch.tensor(course.losses), "best": torch.tensor([course.best, course.steps]),
                "hard": torch.tensor(losses[1] <= losses[0])} \
            | {f"net.{name}": value for name, value in copied(net).items()}

    def load(self, found: Tensors, view: View) -> Arranger:
        """Rebuild what `train` found."""
        with seeded(0):
            net = Arranger(view.image_shape, self.size, self.width, self.depth)
        net.load_state_dict(under(found, "net."))
        return net.to(found["objective"].device).eval()

    def _batches(self, public: Images, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        count = (public.shape[1] // self.size) * (public.shape[2] // self.size)
        batch = max(1, min(self.batch, _PAIRS // count**2))
        for rows in shuffled_passes(len(public), batch, self.steps, rng):
            yield shuffled(augmented(public.pixels[rows], rng), self.size, rng)


def size_of_whole_pieces(view: View) -> int | None:
    """Return the side of the pieces where all that the view's defense does is to move whole ones; else None."""
    pieces = view.algorithm.defense.pieces(view.image_shape)
    if pieces is None or pieces != Pieces(pieces.size, moved=True) or view.released_shape != view.image_shape:
        return None
    _, height, width = view.image_shape
    tiled = height % pieces.size == 0 and width % pieces.size == 0
    count = (height // pieces.size) * (width // pieces.size)
    return pieces.size if tiled and 1 < count <= MOST_PIECES else None


def shuffled(images: Tensor, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the pieces `[n, P, C, size, size]` of images in random order, and the place of each, `[n, P]`."""
    pieces = cut(images, size)
    places = permutations(len(images), pieces.shape[1], rng).to(images.device)
    return permute_rows(pieces, places), places


@torch.no_grad()
def believed(net: Arranger, pieces: Tensor) -> Tensor:
    """Return where the pieces are believed to lie, `[n, P, H, W]`: the mean over the image and its mirror image."""
    plain, mirrored = net(pieces)[0][-1], net(pieces.flip(4))[0][-1].flip(3)
    return doubly_stochastic((plain + mirrored) / 2)


def arranged(net: Arranger, pieces: Tensor, hard: bool) -> Tensor:
    """Return images `[n, C, H, W]` of pieces in their most probable places; not hard: in all, in proportion."""
    net.eval()
    found = []
    for some in pieces.split(_at_once(pieces)):
        beliefs = believed(net, some)
        found.append(join(permute_rows(some, assigned(beliefs).to(some.device)), net.shape) if hard
                     else mixed(some, beliefs, net.shape))
    return torch.cat(found)


def _at_once(pieces: Tensor) -> int:
    """Return how many images fit into memory with all pairs of their pieces, and with their pixels."""
    return max(1, min(_PAIRS // pieces.shape[1]**2, _VALUES // pieces[0].numel()))
