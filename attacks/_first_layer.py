"""A network's input from the gradient of its first layer, where that is linear with a bias: no optimisation.

The weight gradient of unit i is `d_i x'`, its bias gradient `d_i`, for one image x: every unit that is active at all
tells the whole image (Phong et al. 2017, "Privacy-preserving deep learning"; Geiping et al. 2020, proposition 3.1).
"""

import math

import torch
from torch import nn

from ppbench.attacks._algebra import Solved, residual
from ppbench.attacks._heard import heard
from ppbench.codec import Tensors
from ppbench.data import Shape

_ACTIVE = 1e-20  # square of a bias gradient, relative to that of the weights, below which it tells nothing


def linear_inputs(net: nn.Module, grads: Tensors, shape: Shape) -> Solved | None:
    """Solve for one image a gradient.

    Args:
        net: a `Normalised` network.
        grads: parameter name -> `[N, *parameter shape]`, each the gradient of one image.
        shape: (C, H, W) of the images.

    Returns:
        None where the first layer with parameters is not linear over the whole image, or its gradients tell nothing.
    """
    name = _first_linear(net, shape)
    weight, bias = grads.get(f"{name}.weight"), grads.get(f"{name}.bias")
    if name is None or weight is None or bias is None:
        return None
    weight, bias = weight.double(), bias.double()
    active = bias.square().sum(1)
    if (active <= _ACTIVE * weight.square().sum((1, 2))).any():
        return None
    normalised = torch.einsum("no,noi->ni", bias, weight) / active[:, None]
    images = ((normalised.reshape(-1, *shape) + 1) / 2).float().clamp(0, 1)
    return Solved(images, residual(torch.einsum("no,ni->noi", bias, normalised), weight))


@torch.no_grad()
def _first_linear(net: nn.Module, shape: Shape) -> str | None:
    """Return the name of the layer that sees the whole normalised image first, as it is."""
    probe = torch.linspace(0, 1, math.prod(shape)).reshape(1, *shape)
    layers = {name: module for name, module in net.named_modules() if list(module.parameters(recurse=False))}
    name, inputs = heard(net, layers, probe.to(next(net.parameters())))[1][0]
    if not isinstance(layers[name], nn.Linear) or inputs.shape != (1, math.prod(shape)):
        return None
    return name if torch.allclose(inputs[0], probe.flatten().to(inputs) * 2 - 1, atol=1e-6) else None
