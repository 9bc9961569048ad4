"""Gradients of small networks, as problems."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ppbench.attacks._gradient_problem import Client, Problem, follows
from ppbench.model import Model
from ppbench.seeding import generator, seeded
from ppbench.updates import client_update, prepare

CLASSES, SHAPE = 5, (3, 16, 16)
VIT = Model("timm:vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2,
                                          "num_classes": CLASSES})
CONV = Model("ppbench.nets:convnet", {"num_classes": CLASSES, "width": 8})
RESNET = Model("ppbench.nets:cifar_resnet", {"num_classes": CLASSES, "depth": 8})
_COARSE = torch.rand(6, 3, 4, 4, generator=generator(1))
IMAGES = nn.functional.interpolate(_COARSE, SHAPE[1:], mode="bicubic").clamp(0, 1)
LABELS = torch.arange(6) % CLASSES


def fresh(model: Model) -> Model:
    with seeded(5):
        net = model.build()
        nn.init.normal_(list(net.parameters())[-2], std=0.2)  # timm's last layer starts at zero
        return model.with_state(net)


def made(model: Model, client: Client, *, taped: bool | None = None) -> Problem:
    """Return what clients send of all images, as a problem."""
    model = fresh(model)
    update = client_update(model, IMAGES, LABELS, batch=client.part or client.size, local_steps=client.local_steps,
                           learning_rate=client.learning_rate, bn_train=client.bn_train,
                           label_smoothing=client.label_smoothing)
    net = model.build()
    prepare(net, client.bn_train)
    scale = client.local_steps * client.learning_rate if client.local_steps > 1 else 1
    values = {name: (value / scale).unflatten(0, (-1, client.size // (client.part or client.size))).mean(1)
              for name, value in update.values.items()}
    problem = Problem(net, values, LABELS.reshape(-1, client.size), client)
    return replace(problem, taped=follows(problem, IMAGES[: client.size]) if taped is None else taped)


def batches(client: Client) -> Tensor:
    return IMAGES.unflatten(0, (-1, client.size))
