"""The last layer's inputs ("features"), as its gradients tell them.

The weight gradient of class c is the mean over images i of `(p_ic - 1[y_i = c]) x_i`: a linear system in the inputs x.
One image's probabilities are told by the bias gradient, exactly. Those of a batch are told as their mean alone, and how
far they lie apart is seen on other images: an untrained network predicts nearly the same for all, a trained one does
not. What of the inputs would come out wrong for it is left open.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppbench.attacks._labels import last_linear
from ppbench.codec import Tensors

UNEXPLAINED = 0.1  # share of a last layer's gradient that no features explain: somebody has added noise
CLEAR = 10  # times the error of the system must a singular value be
TINY = 1e-30  # squares below this are as good as none


@dataclass(frozen=True)
class Features:
    """What is known of the inputs of the last layer.

    Attributes:
        values: `[problems, size, features]`; what images of one class share, their mean, stands for each of them.
        shared: `[problems, size, size]`, takes inputs to what is known of them.
    """

    values: Tensor
    shared: Tensor

    def __getitem__(self, rows: Tensor) -> "Features":
        return Features(self.values[rows], self.shared[rows])

    def apart(self, inputs: Tensor) -> Tensor:
        """Return the squared distances `[problems]` of inputs `[problems, size, features]`, relative to the values."""
        shared, values = self.shared.to(inputs.dtype), self.values.to(inputs.dtype)
        distance = (shared @ inputs - values).square().flatten(1).sum(1)
        return distance / values.square().flatten(1).sum(1).clamp(min=TINY)


def features_of(net: nn.Module, grads: Tensors, labels: Tensor, classes: int, like: Tensor,
                smoothing: float = 0.0) -> Features | None:
    """Solve for the last layer's inputs.

    Args:
        net: the network at which the gradients were taken.
        grads: parameter name -> `[batches, *parameter shape]`.
        labels: `[batches, size]`.
        classes: number of classes.
        like: `[M, c, h, w]`, images like those behind the gradients.
        smoothing: of the labels in the clients' loss.

    Returns:
        None where the last layer has no bias, its gradients are not among those given, or what is clear of the inputs
        does not explain them.
    """
    name = last_linear(net, classes)
    weight, bias = grads.get(f"{name}.weight"), grads.get(f"{name}.bias")
    if weight is None or bias is None:
        return None
    size = labels.shape[1]
    true = (1 - smoothing) * nn.functional.one_hot(labels, classes).double()  # beside what all classes share
    factors = (bias.double()[:, None] + true.mean(1, keepdim=True) - true) / size
    error = math.sqrt(spread(net, like) / size) if size > 1 else 0.0
    weight, system = weight.double(), factors.mT
    solution = torch.linalg.pinv(system, atol=torch.tensor(CLEAR * error).double(), rtol=1e-9)
    values = solution @ weight
    unexplained = (system @ values - weight).square().sum() / weight.square().sum()
    return Features(values.float(), (solution @ system).float()) if unexplained < UNEXPLAINED else None


@torch.no_grad()
def spread(net: nn.Module, images: Tensor) -> float:
    """Return the mean squared distance of the probabilities from their mean."""
    return float(net(images).softmax(1).var(0, correction=0).sum())
