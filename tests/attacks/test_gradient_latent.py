from dataclasses import replace

import pytest
import torch
from gradient_views import CLASSES, CONV, QUICK, SHAPE, VIT, attacked, decibels, run
from torch.nn.functional import one_hot

from ppbench.attacks._gan import Generator
from ppbench.attacks._gan_nets import Design, GeneratorNet
from ppbench.attacks._gradient_latent import generated
from ppbench.attacks._gradient_match import Scene
from ppbench.attacks._gradient_search import Aim
from ppbench.attacks._gradient_settings import Settings
from ppbench.attacks._released import like_released
from ppbench.errors import NotApplicable
from ppbench.seeding import generator, seeded
from ppbench.updates import client_update, prepare
from ppbench.view import View

DRAWN = replace(QUICK, steps=60, generator=1.0, generator_steps=2)


def drawing() -> GeneratorNet:
    with seeded(1):
        net = GeneratorNet(Design(SHAPE, CLASSES, 4, 8))
    net.centre.weight.data = 2 * one_hot(torch.arange(CLASSES + 1) % 4, 4).float()
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("batch", [1, 2])
def test_an_image_of_the_generator_is_found_from_its_gradient(batch: int) -> None:
    view, _ = attacked(CONV, targets=4, batch=batch)
    net = drawing()
    labels = torch.arange(4)
    true = net(net.centre(labels) + 0.5 * torch.randn(4, 4, generator=generator(3)))
    start = net(net.centre(labels))
    update = client_update(view.model, true, labels, batch=batch, local_steps=1, learning_rate=0.02, bn_train=False)
    known = View(replace(view.sealed, update=update))
    own = known.model.build()
    prepare(own, False)
    scene = Scene(known, own, like_released(known, generator(1)), generator(2), net)
    problem = scene.problem(update, batch, slice(None), labels)
    found = generated(problem, net, Aim(Settings(steps=120), generator(4)), 120)
    assert found.images.shape == (4 // batch, batch, *SHAPE)
    assert decibels(found.images.flatten(0, 1), true).mean() > decibels(start, true).mean() + 6


def test_the_generator_comes_first_and_the_rest_goes_on_from_there() -> None:
    view, true = attacked(CONV, targets=2, batch=1)
    prior = DRAWN.priors(view)["generator"]
    assert prior == Generator(steps=2)
    weights = prior.train(view, generator(0))
    found = {share: replace(DRAWN, generator=share).run(view, {"generator": weights}, generator(0))
             for share in (0.5, 1.0)}
    assert all("from a public generator" in one.note for one in found.values())
    assert (found[0.5].objective[1] < found[1.0].objective[1]).all()
    assert decibels(found[0.5].images, true).mean() > 14
    plain = run(replace(DRAWN, generator=0.0), view)
    assert "generator" not in plain.note
    assert not replace(DRAWN, generator=0.0).priors(view)


def test_a_generator_is_searched_beside_what_algebra_nearly_tells() -> None:
    view, true = attacked(VIT, targets=2, batch=1, spoilt=1e-4)
    nearly = run(replace(DRAWN, generator=0.0, steps=2), view)
    found = replace(DRAWN, generator=0.5, steps=4).run(
        view, {"generator": DRAWN.priors(view)["generator"].train(view, generator(0))}, generator(0))
    assert "closed form (positions) for 0 of 2" in found.note
    assert "from a public generator" in found.note
    assert (decibels(found.images, true) > decibels(nearly.images, true) - 0.5).all()


@pytest.mark.parametrize("defense", ["block-scrambling", "mixup"])
def test_where_released_images_are_unlike_public_ones_no_generator_is_used(defense: str) -> None:
    view, _ = attacked(CONV, defense)
    assert not DRAWN.priors(view)
    with pytest.raises(NotApplicable, match="set generator = 0"):
        DRAWN.run(view, {}, generator(0))
