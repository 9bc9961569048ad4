"""A ViT for mixtures of sub-patches: half the image, half the patch, as many tokens."""

from torch import Tensor

from ppbench.model import Model
from ppbench.vit.shape import KERNEL, VitShape


def for_mixtures(model: Model, vit: VitShape, patch: int) -> Model:
    """Return a plain timm ViT for images of which every patch is the average of its 2 x 2 sub-patches.

    Given weights are taken over, the patch projection by `mixed_kernel`.

    Args:
        model: the plain ViT.
        vit: its shape; its patches hold whole mixed patches.
        patch: side of a mixed patch in the plain image, even.
    """
    (_, height, width), (rows, columns) = vit.image, vit.patch
    halved = model.with_kwargs(img_size=[height // 2, width // 2],
                               patch_size=rows // 2 if rows == columns else [rows // 2, columns // 2])
    if model.state is None:
        return halved
    return Model(halved.factory, halved.kwargs, {**model.state, KERNEL: mixed_kernel(model.state[KERNEL], patch)})


def mixed_kernel(kernel: Tensor, patch: int) -> Tensor:
    """Sum a patch projection `[D, C, h, w]` over the 2 x 2 sub-patches of every `patch` x `patch` it covers.

    That is the plain projection of the patch whose four sub-patches all are the mixture: the expected token, given the
    mixture, where nothing tells the sub-patches apart.

    Returns:
        `[D, C, h / 2, w / 2]`.
    """
    width, channels, rows, columns = kernel.shape
    half = patch // 2
    parts = kernel.reshape(width, channels, rows // patch, 2, half, columns // patch, 2, half)
    return parts.sum((3, 6)).reshape(width, channels, rows // 2, columns // 2)
