"""Recover the key of a cipher that moves and negates whole values, and decrypt with it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppbench.attack import Attack, Priors, Reconstruction
from ppbench.attacks._key_chosen import chosen
from ppbench.attacks._key_map import KeyMap, Structure
from ppbench.attacks._key_pairs import Recovered
from ppbench.attacks._key_release import IMAGES, settled
from ppbench.attacks._key_statistics import MOST, guess
from ppbench.attacks._key_structure import structure_of
from ppbench.attacks._key_vote import agreed
from ppbench.attacks._key_weights import Absorbed, from_weights
from ppbench.attacks._solving import Solver
from ppbench.blocks import cut
from ppbench.defense import resize
from ppbench.view import View

JOINT = 64  # images that are put together as one puzzle


@dataclass(frozen=True)
class KeyRecovery(Attack):
    """Recover the key from known or chosen pairs, and decrypt every image that it protects.

    A cipher that only moves and negates values (or their nibbles) leaves them recognisable: known pairs give every
    value a signature, its levels in all of them, and equal signatures belong together (known-plaintext attacks on
    permutation ciphers: Li, Li, Chen, Bourbakis & Lo 2008, "A general quantitative cryptanalysis of permutation-only
    multimedia ciphers against plaintext attacks"). Blocks are found by what they hold, then the values inside them.
    What the pairs leave open, such as flat blocks, is chosen so that the released images become smooth; places of
    blocks that are each shuffled their own way excepted.

    The images for an oracle are drawn so that no two values of a block agree, in as few as that takes.

    Without pairs, the correlations of values in a release under one key tell where they went: inside blocks that are
    all shuffled alike (`_key_statistics`; `jigsaw` then puts the blocks together, all images as one puzzle), or between
    blocks in states of their own (`_key_neighbours`). A few hundred images hardly tell left from right: then all may
    come out mirrored.

    Pairs that do not fit the key that most of them agree on are left out.

    A ViT that absorbed the key shows it to whoever has the plain weights that it started from (`_key_weights`): asked
    where there are no pairs, or too few to tell all.

    Keys of one image each are told by no pair; then, and where a defense does more than move values, the release is
    returned as it is: `jigsaw` and what learns (`unet-inverter`, `vit-inverter`) need no key.

    Attributes:
        settle: choose by the release among the keys that agree with the pairs.
        statistics: look for the key in the release where there are no pairs.
    """

    requires = frozenset({"images", "algorithm"})
    uses = frozenset({"pairs", "oracle", "public", "model"})
    default_threat = "known-plaintext"
    settle: bool = True
    statistics: bool = True

    def queries(self, view: View) -> Tensor:
        """Name the images from which every client's key can be read; none where no key can."""
        structure = _readable(view)
        if structure is None:
            return torch.empty(0, *view.image_shape)
        return _chosen(view, structure).repeat_interleave(view.algorithm.clients, 0)

    def run(self, view: View, priors: Priors, rng: torch.Generator) -> Reconstruction:
        """Decrypt the targets with the keys that were found; images of other keys are returned as released."""
        structure = _readable(view)
        images = resize(view.images, view.image_shape)
        if structure is None:
            return Reconstruction(images, aligned=view.has_partner, note=_why_not(view))
        notes = []
        for client, theirs in _by_key(view):
            form, key, note = self._key(view, structure, client, theirs, rng)
            mine = theirs[view.target_rows]
            if key is not None:
                images[mine] = form.image_of(key.decrypt(form.levels(view.images[mine]), form.top))
            notes.append(note)
        return Reconstruction(images, aligned=view.has_partner, note="; ".join(dict.fromkeys(notes)))

    def _key(self, view: View, structure: Structure, client: int, theirs: Tensor, rng: torch.Generator,
             ) -> tuple[Structure, KeyMap | None, str]:
        """Return a client's key, as far as it can be found, its structure, and what speaks for it."""
        most = max(IMAGES, MOST // (structure.blocks * structure.values))
        released = structure.levels(view.release.images[theirs.nonzero()[:most, 0]])
        pairs = [*_known(view, client), *_asked(view, structure, client)]
        if pairs:
            plain, made = (torch.cat(part) for part in zip(*pairs, strict=True))
            found, rows = agreed(structure, structure.levels(plain), structure.levels(made))
            note = _note(found, rows)
            if found.sure < 1:
                absorbed = _absorbed(view, structure)
                if absorbed is not None and absorbed.explains(plain[rows], made[rows]):
                    return absorbed.structure, absorbed.key, f"{note}; {_by_weights(absorbed)}"
            if not self.settle:
                return structure, found.key, note
            key = settled(structure, found, released)
            agrees = found.right < 1 or key.explains(structure, plain[rows], made[rows])
            return structure, key if agrees else found.key, note
        absorbed = _absorbed(view, structure)
        if absorbed is not None:
            return absorbed.structure, absorbed.key, _by_weights(absorbed)
        if not self.statistics or "public" not in view.granted:
            return structure, None, "as released: no pairs"
        guessed = guess(structure, released, structure.levels(view.public.pixels), rng)
        if guessed is None:
            return structure, None, "as released: no pairs, and the statistics of the release do not tell the key"
        key, fit = guessed
        if structure.moved and structure.inside == "shared":
            key = _assembled(structure, key, released, rng)
        return structure, key, f"by the statistics of {len(released)} images: correlations agree to {fit:.4f}"


def _readable(view: View) -> Structure | None:
    """Return the structure of a key that pairs can tell; None = there is none."""
    if view.algorithm.key_scope not in ("global", "client") or not _senders_known(view):
        return None
    return structure_of(view.algorithm, view.image_shape)


def _senders_known(view: View) -> bool:
    return view.algorithm.clients == 1 or "images" not in view.granted or view.release.clients is not None


def _why_not(view: View) -> str:
    scope = view.algorithm.key_scope
    if scope in ("global", "client") and not _senders_known(view):
        return "as released: several clients, and nothing says who sent what"
    if scope == "image":
        return "as released: every image has a key of its own"
    return "as released: no key" if scope is None else "as released: the defense does more than move whole values"


def _by_key(view: View) -> Iterator[tuple[int, Tensor]]:
    """Yield the clients that sent targets, each with the released images `[M]` bool under its key."""
    released = view.release
    senders = torch.zeros(len(released), dtype=torch.int64) if released.clients is None else released.clients
    for client in senders[view.target_rows].unique().tolist():
        yield client, senders == client


def _known(view: View, client: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the known pairs under a client's key, if there are any."""
    if "pairs" not in view.granted:
        return
    pairs = view.pairs
    mine = torch.ones(len(pairs.plain), dtype=torch.bool) if pairs.clients is None else pairs.clients == client
    if mine.any():
        yield pairs.plain[mine], pairs.protected[mine]


def _asked(view: View, structure: Structure, client: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the chosen images and a client's answers, where there is an oracle."""
    if "oracle" in view.granted and len(view.answers):
        yield _chosen(view, structure), view.answers[client::view.algorithm.clients]


def _chosen(view: View, structure: Structure) -> Tensor:
    """Return the images that each client is asked for."""
    each = view.n_queries // view.algorithm.clients
    return chosen(structure, each) if each else torch.empty(0, *view.image_shape)


def _assembled(structure: Structure, key: KeyMap, released: Tensor, rng: torch.Generator) -> KeyMap:
    """Return the key with the places of its blocks, found by putting the decrypted blocks together."""
    _, height, width = structure.image
    assert structure.size is not None
    images = structure.image_of(key.decrypt(released[:JOINT], structure.top))
    grid = height // structure.size, width // structure.size
    board = Solver().together(cut(images, structure.size), grid, rng)
    return replace(key, source=board.pieces.flatten().argsort())


def _absorbed(view: View, structure: Structure) -> Absorbed | None:
    """Return the key that the model absorbed, where its starting weights are published."""
    return from_weights(structure, view.model, view.start) if "model" in view.granted and view.start is not None \
        else None


def _by_weights(absorbed: Absorbed) -> str:
    return f"by the weights: mean cosine {absorbed.fit:.3f} with the published ones"


def _note(found: Recovered, rows: Tensor) -> str:
    """Say how far the pairs, those of `rows` `[k]` bool, speak for the key."""
    pairs, left = int(rows.sum()), int((~rows).sum())
    many = f"{pairs} pair" + ("s" if pairs > 1 else "") + (f" ({left} of another key left out)" if left else "")
    return f"{many}: {found.right:.1%} of their values explained, {found.sure:.1%} beyond doubt"
