"""A network that notes what passes through its layers, so that gradients are compared without being written out.

Every layer with parameters is replaced by a twin that does the same and keeps its inputs and outputs. From these, and
the gradients of the outputs, each twin tells how the gradients of its parameters lie to those that clients sent
(`_weight_gradients`). All problems go through the network in one batch; derivatives by the images are one more pass.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppbench.attacks._twins import Loose, Twin, twin_of
from ppbench.attacks._weight_gradients import Sums, added
from ppbench.codec import Tensors


class Unsupported(Exception):
    """A network does what notes cannot follow; says what."""


@dataclass(frozen=True)
class Note:
    """What passed through a layer: its twin, the inputs as this wants them, the outputs."""

    twin: Twin
    inputs: Tensor
    outputs: Tensor


class Tape:
    """A network of twins, and the notes of its last pass.

    Attributes:
        notes: layer by layer.
        told: what each twin told last, of those that the loss depends on.
        problems: how many share the batch that passes.
        dtype: computed in.
    """

    def __init__(self, net: nn.Module, given: Tensors, dtype: torch.dtype = torch.float32) -> None:
        """Copy a network, and replace its layers.

        Args:
            net: prepared (`ppbench.updates.prepare`).
            given: parameter name -> `[problems, ...]`, what clients sent; `[1, ...]` = the same for all problems.
            dtype: to compute in.

        Raises:
            Unsupported: a parameter belongs to no layer that has a twin, or to several.
        """
        self.notes: list[Note] = []
        self.problems, self.dtype = 1, dtype
        self.net = deepcopy(net).requires_grad_(False)
        self.loose: list[Loose] = []
        self.told: dict[Twin, Sums] = {}
        owned = [id(value) for module in self.net.modules() for value in module.parameters(recurse=False)]
        named = [module for _, module in self.net.named_modules(remove_duplicate=False)]
        if len(set(owned)) < len(owned) or any(list(module.parameters(recurse=False)) and named.count(module) > 1
                                               for module in named):
            raise Unsupported("several layers share a parameter")
        rest = dict(given)
        for name, module in list(self.net.named_modules()):
            if hasattr(module, "inplace"):
                setattr(module, "inplace", False)  # noqa: B010 (what was noted must stay)
            names = {key: f"{name}.{key}".removeprefix(".") for key, _ in module.named_parameters(recurse=False)}
            own = {key: rest.pop(full) for key, full in names.items() if full in rest}
            if own:
                self._replace(name, module, own)
        if rest:
            raise Unsupported(f"{next(iter(rest))} is no parameter of the network")
        self.net.to(dtype)

    def __call__(self, images: Tensor, problems: int) -> Tensor:
        """Return logits `[problems * size, classes]` of `[problems * size, c, h, w]`; notes are taken anew."""
        self.notes.clear()
        self.problems = problems
        for parameter in self.loose:
            parameter.spread(len(images))
        found: Tensor = self.net(images.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return found.to(torch.promote_types(self.dtype, torch.float32))

    def sums(self, loss: Tensor) -> Sums:
        """Compare the gradients of the last pass's loss, a sum over problems, with the given ones: `[problems]` each.

        Raises:
            Unsupported: a layer was passed more than once.
        """
        twins = [note.twin for note in self.notes]
        if len(set(twins)) < len(twins):
            raise Unsupported("a layer is passed more than once")
        grads = torch.autograd.grad(loss, [note.outputs for note in self.notes], create_graph=True, allow_unused=True)
        self.told = {note.twin: note.twin.sums(note.inputs, d, self.problems)
                     for note, d in zip(self.notes, grads, strict=True) if d is not None}
        return added(*self.told.values())

    def _replace(self, name: str, module: nn.Module, own: Tensors) -> None:
        twin = twin_of(module, own, self._take, self.dtype, lambda: self.problems)
        if twin is not None:
            parent, _, last = name.rpartition(".")
            setattr(self.net.get_submodule(parent), last, twin)
            return
        for key, value in own.items():
            if len(module.get_parameter(key)) != 1:
                raise Unsupported(f"{name}.{key}, of a {type(module).__name__}, has no twin")
            self.loose.append(Loose(module, key, value, self._take, self.dtype))

    def _take(self, twin: Twin, inputs: Tensor, outputs: Tensor) -> None:
        self.notes.append(Note(twin, inputs, outputs))
