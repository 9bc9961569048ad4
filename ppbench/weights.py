"""Given weights: read safely from a file, and taken over by a network."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ppbench.codec import Tensors
from ppbench.errors import UserError, first_line

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_COUNTER = ".num_batches_tracked"  # of batch norm; older files come without
_PREFIXES = ("module.", "net.")


def read_weights(path: Path, what: str = "weights") -> Tensors:
    """Read weights by name from a safetensors file, or from one of torch's without running anything in it.

    The names lose a `module.` (of DataParallel) or `net.` (of `Model`) in front; a state_dict may stand under a key of
    that name.

    Args:
        path: the file.
        what: names it in messages.

    Raises:
        UserError: the file is missing or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            return stripped(load_file(path))
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{what} {str(path)!r} cannot be read ({first_line(error)}): give a safetensors file, or a "
                        "state_dict that torch loads with weights_only=True") from error
    for name in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not found or \
            not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise UserError(f"{what} {str(path)!r} holds no tensors by name: give a network's state_dict")
    return stripped(found)


def stripped(weights: Tensors) -> Tensors:
    """Drop a prefix that all names share because a network was wrapped when it was saved."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def published(factory: str, kwargs: dict[str, Any]) -> Tensors:
    """Download the weights that timm or torchvision publish for a network.

    Raises:
        UserError: there are none, or they cannot be had.
    """
    source, _, name = factory.partition(":")
    try:
        if source == "timm":
            import timm

            net = timm.create_model(name, pretrained=True)
        elif source == "torchvision":
            import torchvision

            net = torchvision.models.get_model(name, weights="DEFAULT")
        else:
            raise ValueError("only timm and torchvision publish any")
    except Exception as error:
        raise UserError(f"the published weights of {factory!r} cannot be had ({first_line(error)}): give a "
                        "file as weights in [victim], or leave it out") from error
    return dict(net.state_dict())


def take_over(net: nn.Module, weights: Tensors, name: str) -> None:
    """Put given weights into a network, in place.

    Position and patch embeddings of a timm vision transformer are resized where its own differ; a classifier of
    another number of classes stays fresh.

    Raises:
        UserError: names or shapes do not belong to this network.
    """
    own = net.state_dict()
    weights = weights if weights.keys() <= own.keys() else stripped(weights)
    if hasattr(net, "patch_embed") and hasattr(net, "blocks"):
        from timm.models.vision_transformer import checkpoint_filter_fn

        vit: Any = net
        weights = dict(checkpoint_filter_fn(dict(weights), vit))
    head = _classifier(net)
    fresh = {key for key, value in own.items() if key.startswith(head)
             and (key not in weights or weights[key].shape != value.shape)}
    fresh |= {key for key in own if key.endswith(_COUNTER) and key not in weights}
    wrong = [key for key, value in own.items() if key not in fresh
             and (key not in weights or weights[key].shape != value.shape)]
    extra = [key for key in weights if key not in own and not key.startswith(head)]
    if wrong or extra:
        shown = f"{wrong[0]!r} is missing or has another shape" if wrong else f"{extra[0]!r} is unknown to it"
        raise UserError(f"the given weights are not those of the victim {name!r} ({shown}): choose the model, and its "
                        "kwargs, that they were made for")
    net.load_state_dict({**own, **{key: weights[key] for key in own if key not in fresh}})


def _classifier(net: nn.Module) -> tuple[str, ...]:
    """Return how the names of the layers begin that depend on the number of classes."""
    named = getattr(net, "pretrained_cfg", None) or {}
    found = named.get("classifier") if isinstance(named, dict) else None
    if found is None:
        linear = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
        found = linear[-1] if linear else "\0"
    return tuple(f"{key}." for key in ([found] if isinstance(found, str) else found))
