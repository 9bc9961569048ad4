"""LiRA and RMIA: their scores by definition, and that they find members among networks of known distributions."""

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from ppbench.attacks._likelihoods import Shadows, lira, rmia, sureness
from ppbench.membership import area
from ppbench.seeding import generator


def test_sureness_is_the_log_odds_of_the_label() -> None:
    logits = torch.randn(6, 3, 5, generator=generator(0))
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    p = logits.double().softmax(-1)[torch.arange(6), :, labels]
    assert torch.allclose(sureness(logits, labels), (p / (1 - p)).log())
    assert sureness(torch.tensor([[200.0, 0.0]]), torch.tensor([0])).tolist() == [200]


def drawn(shadows: int, candidates: int, gain: float, seed: int, views: int = 1) -> tuple[Tensor, Shadows, Tensor]:
    """Networks whose sureness is normal about a mean of each candidate, and higher by `gain` for whom they know."""
    rng = generator(seed)
    means = 2 * torch.randn(candidates, 1, generator=rng)
    inside = torch.rand(shadows, candidates, generator=rng) < 0.5
    members = torch.rand(candidates, generator=rng) < 0.5
    everyone = torch.cat([members[None], inside])
    sure = means + gain * everyone[..., None] + torch.randn(shadows + 1, candidates, views, generator=rng)
    return sure[0].double(), Shadows(sure[1:].double(), inside), members


@pytest.mark.parametrize("shadows", [16, 64])
def test_online_it_is_the_log_likelihood_ratio(shadows: int) -> None:
    target, others, _ = drawn(shadows, 10, 1.0, 0, views=2)
    expected = []
    fits = []
    for row in range(10):
        parts = [others.sure[where, row] for where in (others.inside[:, row], ~others.inside[:, row])]
        fits.append([(part.mean(0), part.var(0), len(part), (part - part.mean(0)).square().sum(0)) for part in parts])
    for row, known in enumerate(fits):
        variances = [known[i][1] if shadows == 64 else
                     sum(fit[i][3] for fit in fits) / sum(fit[i][2] - 1 for fit in fits) for i in range(2)]
        inside, outside = (norm.logpdf(target[row], known[i][0], variances[i].sqrt()).sum() for i in range(2))
        expected.append(inside - outside)
    assert lira(target, others).tolist() == pytest.approx(expected, rel=1e-6)


def test_offline_it_is_how_unlikely_so_sure_a_network_is() -> None:
    target, others, _ = drawn(64, 5, 1.0, 0)
    rows = [others.sure[~others.inside[:, i], i, 0] for i in range(5)]
    expected = [-norm.logsf(float(target[i, 0]), float(row.mean()), float(row.std())) for i, row in enumerate(rows)]
    assert lira(target, others, online=False).tolist() == pytest.approx(expected, rel=1e-6)
    blind = Shadows(others.sure + 5 * others.inside[..., None], others.inside)  # what members' shadows say is not read
    assert torch.allclose(lira(target, blind, online=False), lira(target, others, online=False))


def test_rmia_by_hand() -> None:
    """Two candidates favoured by 2 and by 1/2; five others by 1, 1, 1, 3 and 1/4."""
    inside = torch.tensor([[True, False], [False, True]])
    shadows = Shadows(torch.tensor([[[0.5], [0.6]], [[0.3], [0.2]]]).double(), inside)
    target = torch.tensor([0.8, 0.2]).double()  # means of .4 each
    population = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.1]).double()
    others = torch.tensor([[0.5, 0.4, 0.6, 0.3, 0.4], [0.5, 0.6, 0.4, 0.3, 0.4]]).double()
    assert rmia(target, shadows, population, others.mean(0), gamma=1.01).tolist() == pytest.approx([0.8, 0.2])
    assert rmia(target, shadows, population, others.mean(0), gamma=3).tolist() == pytest.approx([0.2, 0])
    offline = rmia(target, shadows, population, others.mean(0), gamma=1.01, offline=1.0)  # .8 / .3 and .2 / .6
    assert offline.tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("shadows", [16, 128])
def test_members_are_found_as_well_as_can_be(shadows: int) -> None:
    """Knowing the distributions, the area would be that of two normals a gain apart: .76."""
    target, others, members = drawn(shadows, 4000, 1.0, 1)
    best = norm.cdf(1 / 2**0.5)
    known = lira(target, others)
    assert area(known, members).value == pytest.approx(best, abs=0.03)
    assert area(lira(target, others, online=False), members).value == pytest.approx(best, abs=0.04)
    plain = area(target[:, 0], members).value  # how sure it is, without shadows
    assert plain < best - 0.08
    p, others_p = target.sigmoid()[:, 0], Shadows(others.sure.sigmoid(), others.inside)
    cut = 2000
    found = rmia(p[:cut], Shadows(others_p.sure[:, :cut], others_p.inside[:, :cut]), p[cut:][~members[cut:]],
                 others_p.sure[:, cut:, 0][:, ~members[cut:]].mean(0))
    assert area(found, members[:cut]).value > plain + 0.05
