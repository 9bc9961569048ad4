"""FedAvg on encrypted images: with one key it is FedAvg on plain ones, with a key for every client it is not."""

from _adapted import SMALL, fresh, outputs
from _real import cifar10
from _table import Figure, at_most

from ppbench.defense import Keys, draw_keys
from ppbench.defenses.block_scrambling import BlockScrambling
from ppbench.federated import deal
from ppbench.lessons import Lesson, Same
from ppbench.recipe import Recipe
from ppbench.seeding import generator
from ppbench.victim import accuracy, teach

CLIENTS = 5


def federation(quick: bool) -> list[Figure]:
    """Train by FedAvg on plain images, under one key, and under a key for every client."""
    (images, labels), (test, answers) = cifar10("train"), cifar10("test")
    count, queries = (1000, 500) if quick else (10000, 10000)
    images, labels, test, answers = images[:count], labels[:count], test[:queries], answers[:queries]
    recipe = Recipe(epochs=4 if quick else 10, batch=64, learning_rate=1e-3, clients=CLIENTS, local_epochs=2, amp=False)
    owner = deal(labels, CLIENTS, None, generator(0))
    sender = deal(answers, CLIENTS, None, generator(1))
    plain = fresh("timm:vit_tiny_patch16_224", SMALL, (3, 32, 32))
    defense = BlockScrambling()
    one = draw_keys(defense, "global", len(images), (3, 32, 32), generator(2))
    own = draw_keys(defense, "client", len(images), (3, 32, 32), generator(3), CLIENTS, owner)
    assert one is not None
    assert own is not None
    asked = Keys(one.values, one.owner[:1].expand(len(test)))
    cases = {
        "plain": (plain, images, test),
        "one key, adapted": (defense.adapt(plain, one), defense.query(images, one, generator(4)),
                             defense.query(test, asked, generator(4))),
        "a key for every client": (defense.adapt(plain, own), defense.query(images, own, generator(4)),
                                   defense.query(test, Keys(own.values, sender), generator(4))),
    }
    found, logits = [], {}
    for name, (start, seen, asked_for) in cases.items():
        model, _ = teach(start, Same(Lesson(seen, labels)), recipe, generator(5), owner=owner)
        logits[name] = outputs(model, asked_for)
        found.append(Figure(f"FedAvg, {CLIENTS} clients, {recipe.rounds} rounds: {name}", "accuracy",
                            accuracy(model, asked_for, answers)))
    found.append(at_most("FedAvg: one key against plain images", "accuracy difference, points",
                         100 * abs(found[0].value - found[1].value), 0.5))
    found.append(Figure("FedAvg: one key against plain images", "mean |logit difference|",
                        (logits["plain"] - logits["one key, adapted"]).abs().mean().item()))
    found.append(Figure("FedAvg: a key for every client against plain images", "accuracy lost, points",
                        100 * (found[0].value - found[2].value)))
    return found
