"""Shadows: what networks trained like the victim say of candidates, and of images that nobody trained with."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ppbench.attack import Prior
from ppbench.attacks._shadow_victim import ShadowVictim
from ppbench.attacks._sureness import sure_of_shadow
from ppbench.codec import Tensors
from ppbench.data import Images
from ppbench.partial import partial
from ppbench.seeding import derive_seed, generator
from ppbench.view import Capability, View


@dataclass(frozen=True)
class ShadowVictims(Prior):
    """Networks trained like the victim, each with a half of what there is, and what they say.

    They come in pairs that share the images out between them, so that each image is in exactly half of them.

    Attributes:
        count: how many.
        online: trained with candidates; otherwise with public images, before anybody knows the candidates.
    """

    needs: ClassVar[frozenset[Capability]] = frozenset({"public", "algorithm", "candidates", "model"})
    count: int = 16
    online: bool = True

    def seen(self, view: View) -> View:
        """Leave out the victim's weights, and what it is asked."""
        sealed = view.only(self.needs).sealed
        assert sealed.candidates is not None
        nothing = torch.empty(0)
        return View(replace(sealed, model=None, candidates=replace(sealed.candidates, sent=nothing, public=nothing)))

    def train(self, view: View, rng: torch.Generator) -> Tensors:
        """Return `sure` `[count, N, views]` and `inside` `[count, N]` of candidates, `public` and `public_inside`."""
        seed = int(torch.randint(2**62, (), generator=rng))
        found: list[Tensors] = []
        for number in range(self.count):
            partial().report(number, self.count, "shadows")
            known = partial().load(f"shadow-{number}")
            if known is None:
                known = self._shadow(view, number, seed)
                partial().save(f"shadow-{number}", known)
            found.append(known)
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def _shadow(self, view: View, number: int, seed: int) -> Tensors:
        candidates, public = view.candidates.images, view.public
        pool = candidates if self.online else public
        inside = half(pool, number % 2, generator(derive_seed(seed, "half", number // 2)))
        rows = inside.nonzero()[:, 0]
        if not self.online:  # as many as the victim has, if there are
            order = torch.randperm(len(rows), generator=generator(derive_seed(seed, "fewer", number)))
            rows = rows[order[: -(-len(candidates) // 2)]].sort().values
            inside = torch.zeros_like(inside).index_fill(0, rows, True)
        rng = generator(derive_seed(seed, "shadow", number))
        victim = ShadowVictim.trained(view, pool[rows], rng)
        sure, of_public = (sure_of_shadow(victim.model, victim.keys, images, view.algorithm, rng)
                           for images in (candidates, public))
        no_one = torch.zeros(len(public if self.online else candidates), dtype=torch.bool)
        return {"sure": sure, "inside": inside if self.online else no_one,
                "public": of_public, "public_inside": no_one if self.online else inside}


def half(images: Images, which: int, rng: torch.Generator) -> Tensor:
    """Draw one half of images, class by class, `[N]` bool; the same draw's other half has the other number (0, 1)."""
    order = torch.randperm(len(images), generator=rng)
    order = order[images.labels[order].argsort(stable=True)]
    found = torch.zeros(len(images), dtype=torch.bool)
    found[order[which::2]] = True
    return found
