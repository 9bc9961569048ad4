"""The key-adapted ViT: on encrypted images it computes what the plain one computes on plain images.

Whatever a cipher does inside the patches is undone by the patch projection, and where it moves the patches the position
embedding moves with them: attention itself does not care about the order. Source: Nagamori & Kiya 2023, "Combined use
of federated learning and image encryption for privacy-preserving image classification with vision transformer"
(arXiv 2301.09255), for one permutation of the patches and one of their values.

Images are normalised to [-1, 1], so that 1 - v is a change of sign, and the bias has nothing to absorb.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppbench.codec import Tensors
from ppbench.model import Model
from ppbench.vit.image_map import ImageMap
from ppbench.vit.positionwise import split_kernel
from ppbench.vit.shape import KERNEL, POSITIONS, patches


@dataclass(frozen=True)
class PatchMap:
    """What a cipher does to a ViT's patches; R is 1 where all patches are treated alike, else their number.

    Attributes:
        places: `[patches]` int64: encrypted patch i holds the values of plain patch `places[i]`.
        entries: `[R, values]` int64: its value j is their value `entries[:, j]`, channels counted first,
        negative: `[R, values]` bool: or 1 minus it.
    """

    places: Tensor
    entries: Tensor
    negative: Tensor

    @property
    def alike(self) -> bool:
        """Say whether one projection serves all patches."""
        return len(self.entries) == 1


def patch_map(cipher: ImageMap, patch: tuple[int, int]) -> PatchMap | None:
    """Read a cipher patch by patch; None = some encrypted patch mixes the values of several plain ones.

    Args:
        cipher: what is done to the image.
        patch: height and width of the ViT's patches.
    """
    source, negative = (patches(x[None], patch)[0] for x in (cipher.source, cipher.negative))
    count, values = source.shape
    index = patches(torch.arange(cipher.source.numel()).reshape(1, *cipher.source.shape), patch)[0]
    patch_of, entry_of = (torch.full((cipher.source.numel(),), -1) for _ in range(2))  # -1: outside every patch
    patch_of[index] = torch.arange(count)[:, None].expand(count, values)
    entry_of[index] = torch.arange(values).expand(count, values)
    owners, entries = patch_of[source], entry_of[source]
    if (owners != owners[:, :1]).any() or (owners < 0).any():
        return None
    alike = bool((entries == entries[0]).all() and (negative == negative[0]).all())
    rows = slice(0, 1) if alike else slice(None)
    return PatchMap(owners[:, 0], entries[rows], negative[rows])


def encrypted(model: Model, cipher: PatchMap, *, nibbles: bool = False) -> Model:
    """Return the ViT that does on encrypted images what `model` does on plain ones.

    It stays the same network with its weights rearranged where `cipher.alike`, unless the cipher acts on halves of
    values; otherwise it becomes a `keyed_vit`. Without weights only the architecture is returned.

    Args:
        model: a plain timm ViT (`vit_shape` knows it).
        cipher: what is done to its patches (of the halves, twice as many channels, with `nibbles`).
        nibbles: the cipher acts on the high and low 4 bits of 8-bit values.
    """
    factory, kwargs = model.factory, model.kwargs
    if nibbles or not cipher.alike:
        factory, kwargs = "ppbench.vit.positionwise:keyed_vit", {
            "base": model.factory, "kwargs": model.kwargs, "positions": not cipher.alike, "nibbles": nibbles}
    return Model(factory, kwargs, None if model.state is None else _rearranged(model.state, cipher, nibbles))


def _rearranged(state: Tensors, cipher: PatchMap, nibbles: bool) -> Tensors:
    """Return a copy of the weights of the plain ViT, fit for encrypted images."""
    found = {name: value.clone() for name, value in state.items()}
    kernel = split_kernel(state[KERNEL]) if nibbles else state[KERNEL]
    flat = kernel.flatten(1)[:, cipher.entries].movedim(1, 0)  # [R, D, values]
    signed = torch.where(cipher.negative[:, None], -flat, flat)
    found[KERNEL] = (signed[0].reshape(kernel.shape) if cipher.alike else signed).contiguous()
    if POSITIONS in state:
        prefix = state[POSITIONS].shape[1] - len(cipher.places)  # class, distillation and register tokens stay
        found[POSITIONS][:, prefix:] = state[POSITIONS][:, prefix:][:, cipher.places]
    return found
