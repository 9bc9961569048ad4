"""A vision transformer's input from its gradient, without optimisation.

Position embeddings are added to the embedded patches, so that for one image `dL/dpos` is the gradient at every token,
and the gradient of the patch projection is `sum_t delta_t x_t`: a linear system in the patches x (Lu et al. 2022,
"APRIL"). It is determined where the width exceeds the number of patches (layer normalisation costs one dimension).
"""

import torch
from torch import nn

from ppbench.attacks._algebra import Solved, residual
from ppbench.blocks import join
from ppbench.codec import Tensors
from ppbench.data import Shape


def vit_inputs(net: nn.Module, grads: Tensors, shape: Shape) -> Solved | None:
    """Solve for one image a gradient.

    Args:
        net: a `Normalised` network; anything but a timm vision transformer with learned positions gives None.
        grads: parameter name -> `[N, *parameter shape]`, each the gradient of one image.
        shape: (C, H, W) of the images.

    Returns:
        None where the system is underdetermined or does not exist.
    """
    patch_embed = getattr(getattr(net, "net", None), "patch_embed", None)
    projection = getattr(patch_embed, "proj", None)
    positions, weight = grads.get("net.pos_embed"), grads.get("net.patch_embed.proj.weight")
    if not isinstance(projection, nn.Conv2d) or positions is None or weight is None or positions.ndim != 4:
        return None
    if not isinstance(getattr(patch_embed, "norm", None), nn.Identity) or projection.groups != 1:
        return None
    size, width = projection.kernel_size[0], projection.out_channels
    tokens = (shape[1] // size) * (shape[2] // size)
    if projection.kernel_size != projection.stride or tokens >= min(width, positions.shape[2]):
        return None
    delta = positions[:, 0, -tokens:].double()  # class and register tokens come first
    right = weight.flatten(2).double()
    patches = torch.linalg.lstsq(delta.mT, right, driver="gelsy").solution
    normalised = join(patches.reshape(len(delta), tokens, shape[0], size, size), shape)
    images = ((normalised + 1) / 2).float().nan_to_num(0.5).clamp(0, 1)
    return Solved(images, residual(delta.mT @ patches, right))
