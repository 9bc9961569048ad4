"""The updates that federated clients send: what a server sees of a batch of protected images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppbench.codec import Tensors
from ppbench.device import device
from ppbench.errors import UserError
from ppbench.model import Model, Update
from ppbench.seeding import seeded
from ppbench.task import Classification
from ppbench.victim import check_fits


def client_update(model: Model, images: Tensor, labels: Tensor, *, batch: int, local_steps: int,
                  learning_rate: float, bn_train: bool, label_smoothing: float = 0.0,
                  temperature: float = 1.0) -> Update:
    """Compute what federated clients send: one update for every consecutive batch of images.

    Args:
        model: the global model, at which the updates are taken.
        images: `[N, c, h, w]`, protected.
        labels: `[N]`, or shares of classes `[N, classes]`.
        batch: images a client; the last may have fewer.
        local_steps: 1 = the plain gradient; more = weights before minus after so many SGD steps on the batch.
        learning_rate: of the local SGD steps.
        bn_train: whether batch normalisation uses the batch's own statistics. Dropout is off.
        label_smoothing: of the loss.
        temperature: at which shares were taken.

    Raises:
        UserError: the model does not fit the images, or an update is not finite.
    """
    if batch < 1 or local_steps < 1:
        raise UserError(f"batch={batch} and local_steps={local_steps} must be at least 1")
    task = Classification(label_smoothing)
    with seeded(0), plain_attention():
        net = model.build()
        check_fits(model, net, images, labels)
        prepare(net.to(device()), bn_train)
        before = {name: value.detach().clone() for name, value in net.state_dict().items()}
        found = []
        for x, y in zip(images.split(batch), labels.split(batch), strict=True):
            net.load_state_dict(before)
            found.append(_local(net, x.to(device()), y.to(device()), local_steps, learning_rate,
                                partial(task.loss, temperature=temperature)))
    values = {name: torch.stack([one[name] for one in found]).cpu() for name in found[0]}
    if not all(torch.isfinite(value).all() for value in values.values()):
        raise UserError(f"the update of {model.factory!r} is not finite: lower learning_rate or local_steps")
    return Update(values, batch, local_steps, learning_rate, bn_train, label_smoothing)


def plain_attention() -> AbstractContextManager[None]:
    """Compute attention by kernels that have second derivatives, as clients and their inverters do alike.

    Fused kernels have none, which gradient matching needs; the same kernel on both sides lets the true images reproduce
    an update.
    """
    return sdpa_kernel(SDPBackend.MATH)


def prepare(net: nn.Module, bn_train: bool) -> None:
    """Set a network up for updates: dropout off, batch normalisation as asked, attention written out."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(bn_train)
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 (mypy: modules declare no such attribute)


def _local(net: nn.Module, images: Tensor, labels: Tensor, steps: int, learning_rate: float,
           objective: Callable[[Tensor, Tensor], Tensor]) -> Tensors:
    """Return one client's update by parameter name: the gradient, or what `steps` SGD steps subtract."""
    params = {name: value for name, value in net.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    for _ in range(steps):
        try:
            loss = objective(net(images), labels)
        except ValueError as error:  # batch statistics of a single value
            raise UserError(f"the victim cannot take a batch of {len(images)} in train mode ({error}): set "
                            "bn_train = false or raise batch") from error
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        with torch.no_grad():
            for (name, value), grad in zip(params.items(), grads, strict=True):
                if grad is not None:
                    total[name] += grad if steps == 1 else learning_rate * grad
                    value.sub_(learning_rate * grad)
    return total
