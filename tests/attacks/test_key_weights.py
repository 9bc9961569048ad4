"""Keys that a ViT absorbed, from its weights: alone, and in a federation from gradients to plain images."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import tiny_plan, tiny_run

from ppbench import victim
from ppbench.attacks._key_structure import structure_of
from ppbench.attacks._key_weights import from_weights
from ppbench.data import Images
from ppbench.defense import Keys, draw_keys
from ppbench.lessons import Lesson, Same
from ppbench.model import Model, for_images
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator, seeded
from ppbench.view import Algorithm

SHAPE = (3, 16, 16)
VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}


def start(seed: int = 0) -> Model:
    model = for_images("timm:vit_tiny_patch16_224", VIT, SHAPE, 2)
    with seeded(seed):
        return model.with_state(model.build())


def adapted(preset: str, plain: Model) -> tuple[Algorithm, Keys, Model]:
    algorithm = Algorithm(Ref("defenses", "block-scrambling", {"preset": preset, "absorb": "layers"}), "global", 8)
    keys = draw_keys(algorithm.defense, "global", 64, SHAPE, generator(1))
    assert keys is not None
    return algorithm, keys, algorithm.defense.adapt(plain, keys)


def noise(count: int) -> Images:
    pixels = torch.randint(256, (count, *SHAPE), generator=generator(2)) / 255
    return Images(pixels, torch.arange(count) % 2, torch.arange(count))


@pytest.mark.parametrize("preset", ["vit-cipher", "etc", "le", "ele", "pe"])
@pytest.mark.parametrize("steps", [0, 10])
def test_published_weights_give_the_key_of_every_preset_away(preset: str, steps: int) -> None:
    plain, private = start(), noise(64)
    algorithm, keys, model = adapted(preset, plain)
    released = algorithm.defense.protect(private, keys, generator(3)).images
    if steps:
        recipe = Recipe(model=model.factory, kwargs=model.kwargs, steps=steps, batch=32, learning_rate=1e-3)
        model, _ = victim.teach(model, Same(Lesson(released, private.labels)), recipe, generator(4))
    structure = structure_of(algorithm, SHAPE)
    assert structure is not None
    found = from_weights(structure, model, plain)
    assert found is not None
    assert found.fit > 0.8
    form = found.structure
    assert torch.equal(form.image_of(found.key.decrypt(form.levels(released), form.top)), private.pixels)


@pytest.mark.parametrize("absorb", ["none", "weights"])
@pytest.mark.parametrize("preset", ["etc", "le", "ele", "pe"])
def test_a_vit_that_absorbed_nothing_tells_nothing(preset: str, absorb: str) -> None:
    plain = start()
    algorithm = Algorithm(Ref("defenses", "block-scrambling", {"preset": preset, "absorb": absorb}), "global", 8)
    model = algorithm.defense.adapt(plain, draw_keys(algorithm.defense, "global", 4, SHAPE, generator(1)))
    structure = structure_of(algorithm, SHAPE)
    assert structure is not None
    assert from_weights(structure, model, plain) is None


def test_other_starting_weights_tell_nothing() -> None:
    algorithm, _, model = adapted("vit-cipher", start(seed=0))
    structure = structure_of(algorithm, SHAPE)
    assert structure is not None
    assert from_weights(structure, model, start(seed=1)) is None


def test_what_is_no_such_vit_tells_nothing() -> None:
    algorithm, _, model = adapted("vit-cipher", start())
    structure = structure_of(algorithm, SHAPE)
    assert structure is not None
    convnet = for_images("ppbench.nets:convnet", {"width": 2, "grid": 4}, SHAPE, 2)
    assert from_weights(structure, model, convnet) is None
    wide = for_images("timm:vit_tiny_patch16_224", VIT | {"patch_size": 8}, SHAPE, 2)
    assert from_weights(structure, model, wide.with_state(wide.build())) is None


@pytest.mark.parametrize(("published", "why"), [(True, "by the weights: mean cosine"), (False, "by the statistics")])
def test_a_federated_server_decrypts_without_images_or_pairs(tiny_npz: Path, tmp_path: Path, published: bool,
                                                             why: str) -> None:
    """From a gradient to the encrypted image in closed form, from the weights to the key."""
    kwargs = VIT | {"embed_dim": 24}
    victims: dict[str, Any] = {"model": "timm:vit_tiny_patch16_224", "kwargs": kwargs, "epochs": 1}
    if published:
        model = for_images(victims["model"], kwargs, (3, 16, 16), 3)
        with seeded(0):
            torch.save(model.build().net.state_dict(), tmp_path / "vit.pt")  # type: ignore[union-attr]
        victims["weights"] = str(tmp_path / "vit.pt")
    threats = [{"name": f"server-{at}", "base": "federated-server", "batch": 1, "round": at}
               for at in ("first", "last")]
    attack = {"use": "gradient-matching", "then": {"use": "key-recovery"}, "threats": [one["name"] for one in threats]}
    plan = tiny_plan(tiny_npz, [], [attack], defense=[{"use": "block-scrambling"}], victim=victims, threat=threats)
    tiny_run(plan, tmp_path)
    rows = pd.read_csv(tmp_path / "tiny" / "results.csv")
    assert rows.status.tolist() == ["ok", "ok"]
    assert rows.note.str.contains(why).all()
    if published:
        assert (rows.ssim > 0.999).all()
    else:
        assert (rows.ssim < 0.9).all()
