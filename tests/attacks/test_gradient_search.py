"""The search: what it minimises falls, the best start wins, and every setting does what it says."""

from dataclasses import replace

import pytest
import torch
from gradient_problems import CLASSES, CONV, RESNET, SHAPE, batches, made
from torch import Tensor

from ppbench.attacks import _gradient_search
from ppbench.attacks._features import Features, features_of
from ppbench.attacks._gradient_problem import Client, Explained
from ppbench.attacks._gradient_search import Aim, Found, State, at_once, culls, rate_at, search, signed
from ppbench.attacks._gradient_settings import Settings
from ppbench.attacks._spectrum import spectrum_of
from ppbench.seeding import generator

TWO = Client(2)
QUICK = Settings(steps=60, learning_rate=0.1)


def starts(count: int, problems: int = 3, size: int = 2, labels: bool = False) -> list[State]:
    rng = generator(7)
    return [State(torch.rand(problems, size, *SHAPE, generator=rng),
                  torch.randn(problems, size, CLASSES, generator=rng) if labels else None) for _ in range(count)]


def aim(how: Settings, known: Features | None = None, patch: int | None = None) -> Aim:
    return Aim(how, generator(0), known, patch)


def found(how: Settings, client: Client = TWO) -> Found:
    problem = made(CONV, client)
    return search(problem, starts(how.restarts, len(problem), client.size), aim(how))


def errors(images: Tensor, client: Client = TWO) -> Tensor:
    return (images - batches(client)).square().flatten(1).mean(1)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("how", [
    QUICK, replace(QUICK, sign="soft"), replace(QUICK, sign="none"), replace(QUICK, schedule="steps"),
    replace(QUICK, schedule="constant", learning_rate=0.02), replace(QUICK, warm_up=10), replace(QUICK, noise=0.01),
    replace(QUICK, objective="euclidean"), replace(QUICK, fast=True), replace(QUICK, boxed=False),
    replace(QUICK, tv=1e-3, opponents=True), replace(QUICK, tv=1e-3, tv_end=0),
    Settings("euclidean", "l-bfgs", 40)])
def test_images_come_nearer(how: Settings) -> None:
    before = errors(starts(1)[0].images)
    assert (errors(found(how).images) < 0.5 * before).all()


def test_a_box_holds_and_without_one_nothing_does() -> None:
    big = replace(QUICK, steps=3, learning_rate=2.0)
    problem = made(CONV, TWO)
    inside, outside = (_gradient_search.descend(problem, starts(1)[0], aim(how), 0, 3)[0].images
                       for how in (big, replace(big, boxed=False)))
    assert 0 <= inside.min() <= inside.max() <= 1
    assert outside.abs().max() > 1


def test_a_step_in_the_spectrum_by_hand() -> None:
    """A sign for every coefficient, as large as the coefficient varies among images."""
    problem, start = made(CONV, TWO), starts(1)[0]
    spectrum = spectrum_of(torch.rand(50, *SHAPE, generator=generator(3)).cumsum(3) / SHAPE[2])
    how = replace(QUICK, steps=1000, boxed=False, schedule="constant")
    there = replace(aim(how), spectrum=spectrum)
    end, _ = _gradient_search.descend(problem, start, there, 0, 1)
    moved = spectrum.coefficients(end.images - start.images)
    expected = how.learning_rate * spectrum.deviations.expand_as(moved)
    torch.testing.assert_close(moved.abs(), expected, rtol=1e-3, atol=1e-5)
    images = start.images.clone().requires_grad_()
    slope, = torch.autograd.grad(problem.explainer()(images, problem.labels).cosine().sum(), images)
    against = -spectrum.coefficients(slope)
    clear = against.abs() > 1e-3 * against.abs().max()
    assert (moved.sign() == against.sign())[clear].all()


def test_of_several_starts_the_best_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, how = made(CONV, TWO), replace(QUICK, cull=0.5)
    near = State((batches(TWO) + 0.02 * torch.randn(3, 2, *SHAPE, generator=generator(1))).clamp(0, 1))
    far = starts(2)
    one = search(problem, [far[0], near, far[1]], aim(how))
    alone = search(problem, [near], aim(how))
    assert (errors(one.images) < 3 * errors(alone.images)).all()
    assert (errors(one.images) < errors(search(problem, far[:1], aim(how)).images)).all()
    passes: list[int] = []
    descend = _gradient_search.descend
    monkeypatch.setattr(_gradient_search, "descend",
                        lambda problem, *rest: passes.append(len(problem)) or descend(problem, *rest))  # type: ignore[func-returns-value]
    search(problem, [far[0], near, far[1]], aim(how))
    assert passes == [3, 2] * 3 + [3]  # three starts for each of three problems, two of them, then the three problems


@pytest.mark.parametrize("spectral", [False, True])
def test_a_search_in_parts_is_the_whole_search(spectral: bool) -> None:
    problem, start = made(CONV, TWO), starts(1)[0]
    how = replace(QUICK, steps=12, sign="none")
    there = replace(aim(how), spectrum=spectrum_of(torch.rand(50, *SHAPE, generator=generator(3)))) if spectral \
        else aim(how)
    labels = torch.zeros(*problem.labels.shape, CLASSES)
    for begin in (start, replace(start, logits=labels)):
        whole, _ = _gradient_search.descend(problem, begin, there, 0, 12)
        middle, _ = _gradient_search.descend(problem, begin, there, 0, 5)
        rows = torch.tensor([2, 0])  # some of the problems, in another order
        parts, _ = _gradient_search.descend(problem[rows], middle[rows], there, 5, 12)
        torch.testing.assert_close(parts.images, whole.images[rows], atol=1e-3, rtol=0)
        if whole.logits is not None:
            torch.testing.assert_close(parts.logits, whole.logits[rows], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("count", "how", "expected"), [
    (8, Settings(steps=300, cull=0.5), [50, 100, 150]), (2, Settings(steps=100, cull=0.1), [10]),
    (3, Settings(steps=100, cull=0.1), [5, 10]), (4, Settings(steps=100, cull=1.0), [100]),
    (4, Settings(steps=1, cull=0.1), [1, 1]), (4, Settings(optimiser="l-bfgs", steps=50), [50])])
def test_the_worse_half_of_starts_is_dropped_at_equal_intervals(count: int, how: Settings,
                                                                expected: list[int]) -> None:
    assert culls(count, how) == expected


def test_restarts_of_l_bfgs_and_groups_run_to_the_end() -> None:
    for how in (Settings("euclidean", "l-bfgs", 30, restarts=2), replace(QUICK, group=0.1, restarts=3)):
        before = errors(starts(1)[0].images)
        assert (errors(found(how).images) < 0.5 * before).all()


def test_a_group_draws_its_members_together() -> None:
    problem = made(CONV, TWO)[torch.tensor([0])]
    apart = []
    for group in (0.0, 10.0):
        how = replace(QUICK, group=group, cull=1.0)
        ends = _gradient_search.descend(problem.again(4), State(torch.cat([s.images[:1] for s in starts(4)])), aim(how),
                                        0, 10)[0]
        apart.append(float(ends.images.var(0).mean()))
    assert apart[1] < 0.8 * apart[0]


def test_labels_are_found_with_the_images() -> None:
    problem = made(CONV, Client(1))
    how = Settings("euclidean", "l-bfgs", 60, labels="optimised")
    ends = _gradient_search.descend(problem, starts(1, 6, 1, labels=True)[0], aim(how), 0, 60)[0]
    assert ends.logits is not None
    assert (ends.logits.argmax(-1) == problem.labels).float().mean() >= 5 / 6
    by_adam = replace(QUICK, labels="optimised", steps=60)
    ends = _gradient_search.descend(problem, starts(1, 6, 1, labels=True)[0], aim(by_adam), 0, 60)[0]
    assert ends.logits is not None
    assert (ends.logits.argmax(-1) == problem.labels).float().mean() >= 5 / 6


def test_every_problem_is_searched_alike_alone_or_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    how = replace(QUICK, steps=10, sign="none")  # many signs let one rounding decide
    together = found(how)
    monkeypatch.setattr(_gradient_search, "IMAGES_AT_ONCE", 1)
    torch.testing.assert_close(found(how).images, together.images, atol=0.01, rtol=0)
    assert at_once(made(CONV, TWO)) == 1


def test_features_and_statistics_lead_where_gradients_are_not_asked() -> None:
    problem = made(CONV, Client(1))
    known = features_of(problem.net, problem.given, problem.labels, CLASSES, batches(Client(1)).flatten(0, 1))
    assert known is not None
    true = problem.explainer()(batches(Client(1)), problem.labels).features
    torch.testing.assert_close(known.values, true, rtol=1e-3, atol=1e-4)
    how = replace(QUICK, features=1e6, steps=60)
    begin = starts(1, 6, 1)
    by_features = search(problem, begin, aim(how, known)).images
    assert (errors(by_features, Client(1)) < 0.6 * errors(begin[0].images, Client(1))).all()
    resnet = made(RESNET, TWO)
    strayed = [resnet.explainer()(search(resnet, starts(1), aim(replace(QUICK, statistics=weight))).images,
                                  resnet.labels).strays for weight in (0.0, 10.0)]
    assert strayed[0] is not None
    assert strayed[1] is not None
    assert (strayed[1]() < 0.8 * strayed[0]()).all()


def explained(product: float, square: float, norm: float) -> Explained:
    return Explained(*(torch.tensor([x]) for x in (product, square, norm)))


def test_what_is_minimised_by_hand() -> None:
    images = torch.full((1, 1, 3, 4, 4), 0.5)
    images[..., 2:] = 1.0
    known = explained(3.0, 4.0, 9.0)
    assert aim(Settings()).value(known, images).item() == pytest.approx(0.5)
    assert aim(Settings("euclidean")).value(known, images).item() == pytest.approx(7 / 9)
    assert aim(Settings(tv=3)).value(known, images).item() == pytest.approx(0.5 + 3 * 0.5 / 3)
    assert aim(Settings(tv=3, tv_end=0.5)).value(known, images, 0.0).item() == pytest.approx(0.5 + 1.5 * 0.5 / 3)
    mild = Settings(tv=3, tv_end=0.5, relative=True)
    assert aim(mild).value(known, images).item() == pytest.approx(0.5 * (1 + 3 * 0.5 / 3))
    assert aim(mild).value(known, images, 0.0).item() == pytest.approx(0.5 * (1 + 1.5 * 0.5 / 3))
    assert aim(Settings(norm=2)).value(known, images).item() == pytest.approx(0.5 + 2 * 0.125)
    assert aim(Settings(seams=1), patch=2).value(known, images).item() == pytest.approx(0.5 + 0.125**0.5, abs=1e-4)
    assert aim(Settings(seams=1)).value(known, images).item() == pytest.approx(0.5)
    one = replace(known, features=torch.ones(1, 1, 4), strays=lambda: torch.tensor([5.0]),
                  positions=torch.tensor([0.25]))
    told = Features(torch.full((1, 1, 4), 2.0), torch.ones(1, 1, 1))
    assert aim(Settings(features=2), told).value(one, images).item() == pytest.approx(0.5 + 2 / 4)
    assert aim(Settings(features=2), told).value(one, images, 0.5).item() == pytest.approx(0.5 + 1 / 4)
    assert aim(Settings(statistics=2)).value(one, images).item() == pytest.approx(10.5)
    assert aim(Settings(positions=2)).value(one, images).item() == pytest.approx(1)


def test_rates_by_hand() -> None:
    def rates(how: Settings) -> list[float]:
        return [rate_at(step, how) for step in range(how.steps)]

    assert rates(Settings(steps=8, schedule="steps")) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001])
    assert rates(Settings(steps=2, schedule="cosine")) == pytest.approx([1, 0.5])
    assert rates(Settings(steps=4, schedule="constant", warm_up=2)) == [0.5, 1, 1, 1]


def test_signs_by_hand() -> None:
    slopes = torch.tensor([-3.0, 0.0, 0.1])
    assert signed(slopes, 5, Settings(sign="hard")).tolist() == [-1, 0, 1]
    assert signed(slopes, 5, Settings(sign="none")).tolist() == slopes.tolist()
    torch.testing.assert_close(signed(slopes, 0, Settings(sign="soft")), slopes.tanh())
    assert signed(slopes, 399, Settings(sign="soft", steps=400))[0] < -2.9


def test_same_seed_same_search() -> None:
    how = replace(QUICK, steps=5, noise=0.1)
    assert torch.equal(found(how).images, found(how).images)
    assert not torch.equal(found(how).images, found(replace(how, noise=0.2)).images)
