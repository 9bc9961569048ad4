"""Other implementations of gradient matching, each given the same network, gradient and number of steps.

`breaching` is on PyPI (pip install breaching hydra-core); `invertinggradients` is a repository
(git clone https://github.com/JonasGeiping/invertinggradients; pip install six) whose folder is named by the option
--invertinggradients. Both run in this process, with their published settings of "Inverting gradients". They work on
images of mean 0 and deviation 1, to which their step sizes are made.
"""

import contextlib
import importlib.util
import io
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4823, 0.4467), (0.2470, 0.2435, 0.2616)  # of CIFAR-10


@dataclass(frozen=True)
class Task:
    """One gradient to be inverted.

    Attributes:
        net: prepared; takes images in [0, 1].
        gradient: in the order of its parameters.
        label: `[1]`.
        shape: (C, H, W) of the image.
    """

    net: nn.Module
    gradient: list[Tensor]
    label: Tensor
    shape: tuple[int, int, int]


Peer = Callable[[Task, int], tuple[Tensor, float]]  # a task and steps -> image [1, C, H, W] in [0, 1], seconds


class Standardised(nn.Module):
    """Takes images of mean 0 and deviation 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.net(self.pixels(images))  # type: ignore[no-any-return]

    def pixels(self, images: Tensor) -> Tensor:
        """Return images in [0, 1]."""
        return images * self.get_buffer("std") + self.get_buffer("mean")


def peers(repository: Path | None) -> dict[str, Peer]:
    """Return those that are there, by name; says on stderr which are not."""
    found: dict[str, Peer] = {}
    if importlib.util.find_spec("breaching") is None:
        print("breaching is not installed: no figures of it (pip install breaching hydra-core)", file=sys.stderr)
    else:
        found["breaching"] = _breaching
    if repository is None:
        print("no folder of invertinggradients is named: no figures of it (benchmarks/_peers.py says how)",
              file=sys.stderr)
    else:
        sys.path.insert(0, str(repository))
        found["invertinggradients"] = _inversefed
    return found


def _breaching(task: Task, steps: int) -> tuple[Tensor, float]:
    breaching = importlib.import_module("breaching")
    logging.disable(logging.INFO)
    with contextlib.redirect_stdout(io.StringIO()):
        config = breaching.get_attack_config("invertinggradients", [f"optim.max_iterations={steps}"])
        net = Standardised(task.net)
        setup = {"device": torch.device("cpu"), "dtype": torch.float}
        attacker = breaching.attacks.prepare_attack(net, nn.CrossEntropyLoss(), config, setup)
    about = SimpleNamespace(shape=task.shape, mean=MEAN, std=STD, modality="vision", classes=10)
    payload = [{"parameters": list(net.parameters()), "buffers": list(net.buffers()), "metadata": about}]
    user = {"num_data_points": 1, "labels": task.label, "num_users": 1, "local_hyperparams": None}
    shared = [{"gradients": task.gradient, "buffers": None, "metadata": user}]
    begin = time.perf_counter()
    found, _ = attacker.reconstruct(payload, shared, server_secrets={})
    return net.pixels(found["data"]), time.perf_counter() - begin


def _inversefed(task: Task, steps: int) -> tuple[Tensor, float]:
    inversefed = importlib.import_module("inversefed")
    net = Standardised(task.net)
    mean_std = (net.get_buffer("mean"), net.get_buffer("std"))
    config = {"signed": True, "boxed": True, "cost_fn": "sim", "indices": "def", "weights": "equal", "lr": 0.1,
              "optim": "adam", "restarts": 1, "max_iterations": steps, "total_variation": 0.1, "init": "randn",
              "filter": "none", "lr_decay": True, "scoring_choice": "loss"}
    attacker = inversefed.GradientReconstructor(net, mean_std, config, num_images=1)
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found, _ = attacker.reconstruct(task.gradient, task.label, img_shape=task.shape)
    return net.pixels(found), time.perf_counter() - begin
