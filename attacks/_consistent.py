"""Estimates made to agree with what was seen, where a known linear map tells how."""

from torch import Tensor

from ppbench.attacks._affine import map_of, noise_of
from ppbench.attacks._wiener import Spectrum, Wiener
from ppbench.view import View

ERROR = 1e-3  # variance of an estimate's errors, against which that of rounding is weighed
ITERATIONS = 200  # of conjugate gradients, at most


def as_seen(view: View, images: Tensor, released: Tensor) -> Tensor:
    """Change estimates as little as can be until the defense makes of them what was released.

    The orthogonal projection on all images with that release: the true one is among them, so that errors only fall.
    The prior is white, as what is known of natural images has shaped the estimates already; where errors lie in high
    frequencies, which a natural prior does not expect, it would move them far away.

    Args:
        view: tells the defense. Where it is no fixed linear map, the estimates come back as they are.
        images: `[n, C, H, W]` in [0, 1].
        released: `[n, c, h, w]` in [0, 1].
    """
    through = map_of(view)
    if through is None:
        return images
    prior = Spectrum.white(ERROR, view.image_shape)
    return Wiener.of(through, prior, noise_of(view), view.image_shape, ITERATIONS).mended(images, released)
