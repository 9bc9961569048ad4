"""Models as data: how one is built, and its weights; they cross processes without pickle."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ppbench.codec import Tensors
from ppbench.data import Shape
from ppbench.errors import UserError


class Normalised(nn.Module):
    """A network behind the normalisation (x - 0.5) / 0.5, equal in all channels.

    Equal statistics let a cipher mix the channels before the client's images are normalised.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, classes]` of images `[N, C, H, W]` in [0, 1]."""
        logits: Tensor = self.net(images * 2 - 1)
        return logits


@dataclass(frozen=True)
class Model:
    """A recipe for a network, with or without weights.

    Attributes:
        factory: `timm:NAME`, `torchvision:NAME` or `package.module:function`.
        kwargs: the factory's keyword arguments (JSON values).
        state: parameters and buffers by name; None = fresh weights, drawn from the global generator.
    """

    factory: str
    kwargs: dict[str, Any]
    state: Tensors | None = None

    def build(self) -> nn.Module:
        """Return the network, taking images in [0, 1] and giving logits.

        Raises:
            UserError: the factory is unknown or refuses its arguments.
        """
        net = Normalised(make_network(self.factory, self.kwargs))
        if self.state is not None:
            net.load_state_dict(self.state)
        return net

    def with_state(self, net: nn.Module) -> "Model":
        """Return the same recipe with a copy of a network's weights."""
        return replace(self, state={k: v.detach().cpu().clone() for k, v in net.state_dict().items()})

    def with_kwargs(self, **changes: Any) -> "Model":
        """Return the recipe with other arguments and without weights."""
        return Model(self.factory, {**self.kwargs, **changes})


@dataclass(frozen=True)
class Update:
    """What a federated server receives: one gradient (or weight difference) of a client, or of several on average.

    Attributes:
        values: parameter name -> `[batches, *parameter shape]`.
        batch: images of a client; the targets are dealt to clients in their order (the last may have fewer).
        local_steps: 1 and `is_gradient`: the plain gradient; otherwise the weights before minus after.
        learning_rate: the client's, for the local steps.
        bn_train: whether batch normalisation ran in train mode on the client.
        label_smoothing: of the client's loss.
        clients: whose updates, as they follow each other, are averaged into one (of the last there may be fewer).
    """

    values: Tensors
    batch: int
    local_steps: int
    learning_rate: float
    bn_train: bool
    label_smoothing: float = 0.0
    clients: int = 1


def make_network(factory: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Build a network by name, without pretrained weights.

    Raises:
        UserError: the factory is unknown or refuses its arguments.
    """
    source, _, name = factory.partition(":")
    try:
        if source == "timm":
            import timm

            net = timm.create_model(name, pretrained=False, **kwargs)
        elif source == "torchvision":
            import torchvision

            net = torchvision.models.get_model(name, weights=None, **kwargs)
        else:
            net = getattr(importlib.import_module(source), name)(**kwargs)
    except Exception as error:
        raise UserError(f"the model {factory!r} cannot be built with {dict(kwargs)} ({error}): choose another "
                        "model or other kwargs in [victim]") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"the model factory {factory!r} must return a torch.nn.Module")
    return net


def is_timm_vit(factory: str) -> bool:
    """Say whether a factory names one of timm's plain vision transformers (they take `img_size`)."""
    source, _, name = factory.partition(":")
    if source != "timm":
        return False
    import timm

    return timm.is_model(name) and timm.model_entrypoint(name).__module__.endswith(
        (".vision_transformer", ".deit"))


def for_images(factory: str, kwargs: Mapping[str, Any], shape: Shape, classes: int) -> Model:
    """Fit a factory's arguments to images of `shape` (C, H, W) and a number of classes."""
    channels, height, width = shape
    fitted = {**kwargs, "num_classes": classes}
    if factory.startswith(("timm:", "ppbench.nets:")):
        fitted["in_chans"] = channels
    if is_timm_vit(factory):
        fitted["img_size"] = [height, width]
    return Model(factory, fitted)
