"""Federated averaging: clients train the global model on what they hold, the server averages their weights.

Source: McMahan, Moore, Ramage, Hampson & Aguera y Arcas 2017, "Communication-efficient learning of deep networks from
decentralized data" (arXiv 1602.05629). The server sees the global model and every client's update in every round.
"""

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

from ppbench.central import CHECKPOINT, KEEP_EVERY, School, folded, unfolded
from ppbench.codec import under
from ppbench.device import device
from ppbench.errors import UserError
from ppbench.model import Update
from ppbench.partial import partial
from ppbench.training import Course, Trainer, falls_not, generators, set_generators, steps_of

FEWEST = 2  # images of a client; one alone is no batch for batch normalisation
_TRIES = 100


def deal(labels: Tensor, clients: int, skew: float | None, rng: torch.Generator, fewest: int = FEWEST) -> Tensor:
    """Deal images to clients.

    Args:
        labels: `[N]` int64.
        clients: their number.
        skew: None = at random, equal shares; otherwise every class is dealt by shares drawn from a Dirichlet
            distribution of this alpha (Hsu et al. 2019, arXiv 1909.06335, class by class).
        rng: draws.
        fewest: images that everybody holds.

    Returns:
        `[N]` int64: who holds each image.

    Raises:
        UserError: there are too few images, or the skew leaves somebody without.
    """
    count = len(labels)
    if count < fewest * clients:
        raise UserError(f"{count} private images are too few for {clients} clients with at least {fewest} each: lower "
                        "clients or raise private")
    if skew is None:
        return torch.randperm(count, generator=rng) % clients
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
    for _ in range(_TRIES):
        owner = torch.empty_like(labels)
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            rows = rows[torch.from_numpy(numbers.permutation(len(rows)))]
            ends = np.round(numbers.dirichlet([skew] * clients).cumsum() * len(rows)).astype(int)[:-1]
            for client, part in enumerate(rows.tensor_split(torch.from_numpy(ends))):
                owner[part] = client
        if owner.bincount(minlength=clients).min() >= fewest:
            return owner
    raise UserError(f"skew = {skew} leaves some of {clients} clients with fewer than {fewest} of {count} images in "
                    f"{_TRIES} draws: raise skew, lower clients, or raise private")


def train_federated(net: nn.Module, school: School, owner: Tensor, rng: torch.Generator) -> str:
    """Train a network in place by FedAvg; return a warning, or "".

    All clients take part in every round. A client's optimiser begins anew in each; the learning rate follows one
    schedule over all rounds.

    Args:
        net: the global model.
        school: `until` counts rounds.
        owner: `[M]` int64: who holds each image of a lesson.
        rng: draws the order of the images, client by client.
    """
    recipe = school.recipe
    holders = [(owner == client).nonzero()[:, 0] for client in range(recipe.clients)]
    holders = [rows for rows in holders if len(rows)]
    weights = [len(rows) / len(owner) for rows in holders]
    net.to(device())
    twin = copy.deepcopy(net)
    losses: list[list[float]] = []
    kept = partial().load(CHECKPOINT) if school.penalty is None else None
    if kept is not None:
        losses = unfolded(kept)
        rng.set_state(kept["rng"])
        set_generators(kept)
        net.load_state_dict(under(kept, "net/"))
    saved = time.monotonic()
    for turn in range(len(losses), recipe.rounds if school.until is None else school.until):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        lessons = [school.lessons.of_epoch(rng) for _ in range(recipe.local_epochs)]
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in before.items()
                 if value.is_floating_point()}
        heard: list[float] = []
        for number, (rows, weight) in enumerate(zip(holders, weights, strict=True)):
            twin.load_state_dict(before)
            steps = steps_of(len(rows), recipe.batch, recipe.local_epochs)
            trainer = Trainer(twin, Course(school.name, recipe, school.task, school.penalty, turn * steps,
                                           recipe.rounds * steps))
            for lesson in lessons:
                heard += trainer.epoch(lesson[rows], rng)
            after = twin.state_dict()
            if school.shield is not None:
                names = [name for name, _ in twin.named_parameters()]
                moved = {name: (before[name] - after[name])[None] for name in names}
                sent = school.shield(Update(moved, len(rows), steps, recipe.learning_rate, True,
                                            recipe.label_smoothing), turn * len(holders) + number)
                after = after | {name: before[name] - sent.values[name][0] for name in names}
            for name, value in total.items():
                value += weight * after[name].double()
        net.load_state_dict({name: total[name].to(value.dtype) if name in total else after[name]
                             for name, value in before.items()})
        losses.append(heard)
        warning = falls_not(losses, recipe.rounds)
        partial().report(turn + 1, recipe.rounds, "rounds" + (", loss does not fall" if warning else ""))
        if time.monotonic() - saved > KEEP_EVERY and school.penalty is None:
            saved = time.monotonic()
            now = {f"net/{name}": value for name, value in net.state_dict().items()}
            partial().save(CHECKPOINT, {"rng": rng.get_state(), **generators(), **folded(losses), **now})
    return falls_not(losses, recipe.rounds)
