"""Labels from the gradient of a network's last linear layer, in closed form.

With softmax and cross-entropy the bias gradient of class c is `mean(p_c) - n_c / batch`: its only unknown beside the
counts n is the mean predicted probability, which an untrained network shows on any images. One image has exactly one
negative entry, its label (Zhao et al. 2020, "iDLG"); the counts of a batch: Wainakh et al. 2021, "LLG".
"""

import torch
from torch import Tensor, nn

from ppbench.attacks._heard import heard
from ppbench.codec import Tensors
from ppbench.errors import NotApplicable

PRESENT = 1e6  # outweighs any count: a class with a negative bias gradient is in the batch for certain


def infer_labels(net: nn.Module, grads: Tensors, size: int, classes: int, like: Tensor) -> Tensor:
    """Return the labels `[batches, size]` of batches of `size` images, ascending within a batch.

    Args:
        net: the network at which the gradients were taken.
        grads: parameter name -> `[batches, *parameter shape]`.
        size: images in every batch.
        classes: number of classes.
        like: `[M, c, h, w]`, images like those in the batches.

    Raises:
        NotApplicable: the network does not end in a linear layer with one output a class, or its gradient is missing.
    """
    name = last_linear(net, classes)
    if f"{name}.weight" not in grads:
        raise NotApplicable(f"the update holds no gradient of the last layer {name!r}, where the labels are read")
    bias = grads.get(f"{name}.bias")
    if bias is not None and size == 1:
        return labels_from_bias(bias, bias.new_full((classes,), 1 / classes), 1)  # whatever is predicted
    probabilities, features = _mean_response(net, net.get_submodule(name), like)
    if bias is None or (bias == 0).any():  # there is none, or a defense left parts of it out
        weight = grads[f"{name}.weight"]
        heard = (weight != 0) * features.square()
        bias = weight @ features / heard.sum(2).clamp(min=1e-30)
    return labels_from_bias(bias, probabilities, size)


def labels_from_bias(bias: Tensor, probabilities: Tensor, size: int) -> Tensor:
    """Turn bias gradients into labels.

    Args:
        bias: `[batches, classes]`, gradients of the mean cross-entropy.
        probabilities: `[classes]`, the mean prediction on similar images.
        size: images in a batch.

    Returns:
        `[batches, size]`, ascending.
    """
    if size == 1:
        return bias.argmin(1, keepdim=True)
    expected = size * (probabilities - bias)
    counts = torch.zeros_like(expected)
    for _ in range(size):
        gain = expected - counts + PRESENT * ((bias < 0) & (counts == 0)) * -bias
        counts.scatter_add_(1, gain.argmax(1, keepdim=True), torch.ones(len(bias), 1, dtype=counts.dtype))
    return torch.stack([torch.repeat_interleave(row.long()) for row in counts])


def errors_of(net: nn.Module, grads: Tensors, classes: int) -> Tensor | None:
    """Return the derivatives `[batches, 1, classes]` of the loss by the logits of single images.

    They are the gradient of the last layer's bias; None where there is none among those given.
    """
    bias = grads.get(f"{last_linear(net, classes)}.bias")
    return None if bias is None else bias[:, None]


def last_linear(net: nn.Module, classes: int) -> str:
    """Return the name of the last linear layer with one output a class.

    Raises:
        NotApplicable: there is none.
    """
    fitting: list[str] = [name for name, module in net.named_modules()
                          if isinstance(module, nn.Linear) and module.out_features == classes]
    if not fitting:
        raise NotApplicable(f"gradient matching reads the labels from a last linear layer with {classes} outputs, "
                            "which this victim lacks: choose another model in [victim]")
    return fitting[-1]


@torch.no_grad()
def _mean_response(net: nn.Module, last: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean probabilities `[classes]`, and the mean input of the last layer `[features]`."""
    logits, seen = heard(net, {"last": last}, images)
    return logits.softmax(1).mean(0), seen[-1][1].flatten(0, -2).mean(0)
