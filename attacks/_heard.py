"""What layers are given while a network runs."""

from collections.abc import Mapping

from torch import Tensor, nn


def heard(net: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """Run a network; return its output, and what layers were given, (name, inputs) in the order of their calls.

    Args:
        net: the network.
        layers: of it, by any names.
        images: its inputs.
    """
    seen: list[tuple[str, Tensor]] = []
    handles = [layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((name, inputs[0])))
               for name, layer in layers.items()]
    try:
        output: Tensor = net(images)
    finally:
        for handle in handles:
            handle.remove()
    return output, seen
