"""Derivatives through a defense that has none."""

from torch import Tensor

from ppbench.codec import to_bytes8
from ppbench.defense import resize


def straight_through(released: Tensor, images: Tensor, bits: int, leads: bool = True) -> Tensor:
    """Return released images as they are sent, with a derivative by the plain ones.

    It is that of the defense or, where this has none, that of a plain resize (straight through: Athalye et al. 2018,
    "Obfuscated gradients give a false sense of security", arXiv 1802.00420).

    Args:
        released: `[N, c, h, w]`, what the defense made of the images.
        images: `[N, C, H, W]`.
        bits: of a released pixel (8; 0 = float, not rounded).
        leads: whether the defense's own derivative is of use; one that rounds has one that is 0 everywhere.
    """
    exact = to_bytes8(released.detach()) if bits == 8 else released.detach()
    if not images.requires_grad:
        return exact
    _, c, h, w = released.shape
    leading = released if leads and released.requires_grad else resize(images, (c, h, w))
    return exact + (leading - leading.detach())
