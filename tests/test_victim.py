from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ppbench.data import Images, Split
from ppbench.defense import Defense, Release
from ppbench.defenses.block_scrambling import BlockScrambling
from ppbench.defenses.mixup import Mixup
from ppbench.defenses.none import NoDefense
from ppbench.defenses.patch_shuffle import PatchShuffle
from ppbench.errors import ContractError, UserError
from ppbench.model import Model
from ppbench.recipe import Recipe
from ppbench.seeding import generator, seeded
from ppbench.stages.protecting import check_release
from ppbench.updates import client_update, prepare
from ppbench.victim import accuracy, start, train

SHAPE = (3, 16, 16)
SMALL = Recipe(kwargs={"width": 4, "grid": 4}, epochs=3, batch=8, learning_rate=1e-2)
VIT = Recipe("timm:vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}, epochs=1)
RESNET = Recipe("timm:test_resnet", epochs=1)


def begin(recipe: Recipe = SMALL, defense: Defense | None = None, seed: int = 0, classes: int = 3,
          shape: tuple[int, int, int] = SHAPE) -> Model:
    with seeded(seed):
        return start(recipe, defense or NoDefense(), None, shape, classes)


def bright(count: int, seed: int = 0) -> Release:
    """Images whose class is their brightness."""
    labels = torch.arange(count) % 3
    pixels = (labels[:, None, None, None] / 3 + 0.3 * torch.rand(count, *SHAPE, generator=generator(seed))).clamp(0, 1)
    return Release(pixels, labels, torch.arange(count))


def by_hand(model: Model, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    net = model.build().eval()
    cross_entropy(net(images), labels).backward()
    return {name: value.grad for name, value in net.named_parameters() if value.grad is not None}


def equal_states(first: Model, second: Model) -> bool:
    assert first.state is not None
    assert second.state is not None
    return all(torch.equal(first.state[name], second.state[name]) for name in first.state | second.state)


@pytest.mark.parametrize("recipe", [SMALL, VIT])
def test_start_is_the_same_for_defenses_that_keep_the_architecture(recipe: Recipe) -> None:
    assert equal_states(begin(recipe), begin(recipe, BlockScrambling()))
    assert not equal_states(begin(recipe), begin(recipe, seed=1))


def test_start_lets_the_defense_adapt_the_architecture() -> None:
    assert "net.pos_embed" in (begin(VIT).state or {})
    assert "net.pos_embed" not in (begin(VIT, PatchShuffle()).state or {})
    assert begin(VIT, Mixup()).build()(torch.rand(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (3, 20, 28)])
def test_default_victim_takes_any_image(shape: tuple[int, int, int]) -> None:
    assert begin(SMALL, shape=shape, classes=5).build()(torch.rand(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("recipe", [SMALL, replace(VIT, kwargs=VIT.kwargs | {"proj_drop_rate": 0.2}), RESNET])
def test_train_depends_on_its_generator_alone(recipe: Recipe) -> None:
    model, release = begin(recipe), bright(17)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(model, release, recipe, generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal_states(first, train(model, release, recipe, generator(5)))
    assert not equal_states(first, train(model, release, recipe, generator(6)))


def test_victim_learns_what_can_be_learnt() -> None:
    test = bright(60, seed=1)
    model = begin()
    trained = train(model, bright(60), replace(SMALL, epochs=15), generator(0))
    assert accuracy(trained, test.images, test.labels, batch=7) > 0.9
    assert accuracy(trained, test.images, (test.labels + 1) % 3) < 0.1


def test_accuracy_counts_right_answers() -> None:
    model, release = begin(), bright(10)
    answers = model.build().eval()(release.images).argmax(1)
    labels = torch.where(torch.arange(10) < 7, answers, (answers + 1) % 3)
    assert accuracy(model, release.images, labels, batch=4) == pytest.approx(0.7)


def test_penalty_acts_on_the_weights() -> None:
    def size(net: nn.Module) -> Tensor:
        return torch.stack([value.square().sum() for value in net.parameters()]).sum()

    model, release = begin(), bright(24)
    plain = train(model, release, SMALL, generator(0)).build()
    drawn = train(model, release, SMALL, generator(0), penalty=lambda net: 10 * size(net)).build()
    assert size(drawn) < 0.5 * size(plain)


def test_a_last_batch_of_one_joins_its_neighbour() -> None:
    recipe = Recipe("timm:resnet10t", epochs=1, batch=4)  # one value a channel before the last pooling at 16 x 16
    assert train(begin(recipe), bright(9), recipe, generator(0)).state is not None


@pytest.mark.parametrize(("model", "release", "recipe", "words"), [
    (begin(), bright(12), replace(SMALL, learning_rate=1e18), "lower learning_rate"),
    (begin(classes=2), bright(12), SMALL, "one logit a class"),
    (begin(VIT), Release(torch.rand(4, 3, 12, 12), torch.zeros(4).long(), None), VIT, "another model"),
    (begin(), bright(0), SMALL, "no images"),
])
def test_train_refuses_in_one_sentence(model: Model, release: Release, recipe: Recipe, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        train(model, release, recipe, generator(0))
    assert "\n" not in str(caught.value)


def test_recipe_refuses_nonsense() -> None:
    for wrong in ({"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recipe(**wrong)


@pytest.mark.parametrize("recipe", [SMALL, VIT, RESNET])
def test_update_of_one_step_is_the_gradient(recipe: Recipe) -> None:
    model, release = begin(recipe), bright(7)
    update = client_update(model, release.images, release.labels, batch=3, local_steps=1, learning_rate=0.1,
                           bn_train=False)
    for number, rows in enumerate(torch.arange(7).split(3)):
        expected = by_hand(model, release.images[rows], release.labels[rows])
        assert set(update.values) == set(expected)
        for name, value in expected.items():
            assert update.values[name].shape == (3, *value.shape)
            torch.testing.assert_close(update.values[name][number], value, rtol=1e-4, atol=1e-6)


def test_last_bias_gradient_is_predicted_minus_true() -> None:
    model, release = begin(), bright(5)
    update = client_update(model, release.images, release.labels, batch=5, local_steps=1, learning_rate=1,
                           bn_train=False)
    predicted = model.build()(release.images).softmax(1)
    expected = predicted.mean(0) - torch.bincount(release.labels, minlength=3) / 5
    torch.testing.assert_close(update.values["net.1.bias"][0], expected, rtol=1e-4, atol=1e-6)


def test_fedsgd_average_over_clients_is_the_gradient_of_all() -> None:
    model, release = begin(), bright(12)
    update = client_update(model, release.images, release.labels, batch=4, local_steps=1, learning_rate=1,
                           bn_train=False)
    for name, value in by_hand(model, release.images, release.labels).items():
        torch.testing.assert_close(update.values[name].mean(0), value, rtol=1e-4, atol=1e-6)


def test_local_steps_are_sgd() -> None:
    model, release = begin(), bright(4)
    update = client_update(model, release.images, release.labels, batch=4, local_steps=3, learning_rate=0.2,
                           bn_train=False)
    net = model.build().eval()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2)
    for _ in range(3):
        optimiser.zero_grad()
        cross_entropy(net(release.images), release.labels).backward()
        optimiser.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(update.values[name][0], (model.state or {})[name] - value.detach(), rtol=1e-3,
                                   atol=1e-6)


def test_batch_statistics_are_each_batch_s_own() -> None:
    model, release = begin(RESNET), bright(8)

    def updates(images: Tensor, labels: Tensor, bn_train: bool) -> dict[str, Tensor]:
        return client_update(model, images, labels, batch=4, local_steps=1, learning_rate=1, bn_train=bn_train).values

    both = updates(release.images, release.labels, True)
    second = updates(release.images[4:], release.labels[4:], True)
    name = next(iter(both))  # of the stem: the blocks are silent at the start, their last scale is 0
    torch.testing.assert_close(both[name][1], second[name][0])
    assert not torch.allclose(both[name], updates(release.images, release.labels, False)[name], rtol=1e-2)


def test_update_refuses_in_one_sentence() -> None:
    release = bright(1)
    with pytest.raises(UserError, match="bn_train = false"):
        client_update(begin(Recipe("timm:resnet10t")), release.images, release.labels, batch=1, local_steps=1,
                      learning_rate=1, bn_train=True)
    with pytest.raises(UserError, match="at least 1"):
        client_update(begin(), release.images, release.labels, batch=0, local_steps=1, learning_rate=1, bn_train=False)
    with pytest.raises(UserError, match="not finite"):
        client_update(begin(), release.images, release.labels, batch=1, local_steps=9, learning_rate=1e30,
                      bn_train=False)


def test_prepared_attention_has_second_derivatives() -> None:
    net = begin(VIT).build()
    prepare(net, bn_train=False)
    images = torch.rand(2, *SHAPE, requires_grad=True)
    grads = torch.autograd.grad(net(images).square().sum(), list(net.parameters()), create_graph=True)
    second, = torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), images)
    assert second.abs().sum() > 0


def test_shares_of_one_class_are_that_label() -> None:
    model, release = begin(classes=4), bright(24)
    shares = nn.functional.one_hot(release.labels, 3).float()  # the fourth class has no private image
    soft = replace(release, soft_labels=shares)
    for a, b in zip(train(model, release, SMALL, generator(1)).state.values(),  # type: ignore[union-attr]
                    train(model, soft, SMALL, generator(1)).state.values(), strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(a, b)
    how = {"batch": 8, "local_steps": 1, "learning_rate": 0.1, "bn_train": False}
    hard_update = client_update(model, release.images, release.labels, **how)  # type: ignore[arg-type]
    soft_update = client_update(model, release.images, shares, **how)  # type: ignore[arg-type]
    for name, value in hard_update.values.items():
        torch.testing.assert_close(soft_update.values[name], value)


def test_a_victim_learns_the_shares_and_not_the_label() -> None:
    """Every image is said to be of class 0, while its shares name the class that it shows."""
    release = bright(48)
    shares = nn.functional.one_hot(release.labels, 3).float()
    lied = replace(release, labels=torch.zeros_like(release.labels), soft_labels=shares)
    trained = train(begin(), lied, replace(SMALL, epochs=20), generator(0))
    assert accuracy(trained, release.images, release.labels) > 0.9


@pytest.mark.parametrize(("shares", "words"), [
    (torch.full((3, 4), 0.25), r"\[4, at most 3\]"), (torch.full((4, 4), 0.25), "at most 3"),
    (torch.full((4, 3), 0.5), "sum to 1"), (torch.tensor([[1.5, -0.5, 0.0]] * 4), "from 0 upwards")])
def test_shares_that_are_none_are_refused(shares: Tensor, words: str) -> None:
    release = replace(bright(4), soft_labels=shares)
    images = Images(release.images, release.labels, torch.arange(4))
    with pytest.raises(ContractError, match=words):
        check_release(release, Split(images, images, images, 3), 4)
