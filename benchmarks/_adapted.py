"""How exactly a key-adapted ViT computes on encrypted images what the plain one computes on plain images."""

from typing import Any

import torch
from _real import cifar10, photographs
from _table import Figure, at_most, equal
from torch import Tensor

from ppbench.defense import Defense, Keys, draw_keys
from ppbench.defenses.block_scrambling import BlockScrambling
from ppbench.lessons import Lesson, Same
from ppbench.model import Model, for_images
from ppbench.recipe import Recipe
from ppbench.seeding import generator, seeded
from ppbench.training import Course, Trainer, steps_of
from ppbench.victim import accuracy, teach
from ppbench.vit.pevit import without_order

SMALL: dict[str, Any] = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}
ADAMW = Recipe(batch=64, learning_rate=1e-3)


def equivalence(quick: bool) -> list[Figure]:
    """Compare logits, training trajectories, and outputs for shuffled patches."""
    test, answers = (part[:1000] if quick else part for part in cifar10("test"))
    images, labels = cifar10("train")
    count = 640 if quick else len(images)
    plain = trained(images[:count], labels[:count])
    found = [at_most(f"trained ViT, {len(test)} CIFAR-10 test images", "max |logit difference|",
                     difference(plain, BlockScrambling(), test), 1e-4),
             equal(f"trained ViT, {len(test)} CIFAR-10 test images", "accuracy lost on the same weights, points",
                   100 * lost(plain, BlockScrambling(), test, answers), 0)]
    found += [at_most(f"the same with new layers: {preset}", "max |logit difference|",
                      difference(plain, BlockScrambling(preset, absorb="layers"), test[:1000]), 1e-4)  # type: ignore[arg-type]
              for preset in ("etc", "le", "ele", "pe")]
    photos = None if quick else photographs(4)
    if photos is None:
        why = "not measured" + (": quick" if quick else ": no photographs")
        found.append(Figure("untrained vit_base_patch16_224", why, float("nan")))
    else:
        model = fresh("timm:vit_base_patch16_224", {}, (3, 224, 224))
        found.append(at_most("untrained vit_base_patch16_224, 4 photographs", "max |logit difference|",
                             difference(model, BlockScrambling(block=16), photos), 1e-4))
    found.append(at_most("20 AdamW steps from adapted weights", "max |logit difference| to the plain trajectory",
                         trajectory(plain, images[:1280], labels[:1280], test[:500]), 1e-3))
    found.append(at_most("PEViT (RPE), patches in another order", "max |difference of the output|",
                         shuffled(test[:200]), 1e-5))
    return found


def fresh(factory: str, kwargs: dict[str, Any], shape: tuple[int, int, int]) -> Model:
    """Return a model with fresh weights."""
    model = for_images(factory, kwargs, shape, 10)
    with seeded(0):
        return model.with_state(model.build())


def trained(images: Tensor, labels: Tensor) -> Model:
    """Train a small ViT on plain images for three passes."""
    model = fresh("timm:vit_tiny_patch16_224", SMALL, (3, 32, 32))
    recipe = Recipe(epochs=3, batch=128, learning_rate=1e-3, amp=True)
    return teach(model, Same(Lesson(images, labels)), recipe, generator(0))[0]


def encryption(defense: Defense, images: Tensor) -> tuple[Keys, Tensor]:
    """Draw one key and encrypt images under it."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    keys = draw_keys(defense, "global", len(images), shape, generator(1))
    assert keys is not None
    return keys, defense.query(images, keys, generator(2))


@torch.no_grad()
def outputs(model: Model, images: Tensor) -> Tensor:
    """Return logits in float32."""
    net = model.build().eval()
    return torch.cat([net(part) for part in images.split(250)])


def difference(plain: Model, defense: Defense, images: Tensor) -> float:
    """Return max |adapted model on encrypted images - plain model on plain images|."""
    keys, encrypted = encryption(defense, images)
    return (outputs(defense.adapt(plain, keys), encrypted) - outputs(plain, images)).abs().max().item()


def lost(plain: Model, defense: Defense, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy of the plain model on plain images less that of the adapted one on encrypted images."""
    keys, encrypted = encryption(defense, images)
    return accuracy(plain, images, labels) - accuracy(defense.adapt(plain, keys), encrypted, labels)


def trajectory(plain: Model, images: Tensor, labels: Tensor, test: Tensor) -> float:
    """Train both for 20 steps on the same batches, and compare their logits then."""
    defense = BlockScrambling(negative="shared")  # a permutation and sign flips
    keys, encrypted = encryption(defense, images)
    _, queries = encryption(defense, test)
    found = []
    for model, seen, asked in ((plain, images, test), (defense.adapt(plain, keys), encrypted, queries)):
        with seeded(0):
            trainer = Trainer(model.build(), Course("ViT", ADAMW, steps=steps_of(len(images), 64, 1)))
            trainer.epoch(Lesson(seen, labels), generator(3))
            found.append(outputs(model.with_state(trainer.net), asked))
    return (found[0] - found[1]).abs().max().item()


def shuffled(images: Tensor) -> float:
    """Return how far the outputs of a PEViT move when patches change places."""
    from ppbench.defenses.patch_shuffle import PatchShuffle

    with seeded(0):
        model = without_order(fresh("timm:vit_tiny_patch16_224", SMALL, (3, 32, 32)), positions=False, rpe=True)
    defense = PatchShuffle()
    keys = draw_keys(defense, "image", len(images), (3, 32, 32), generator(4))
    return (outputs(model, defense.query(images, keys, generator(5))) - outputs(model, images)).abs().max().item()
