"""Linear MMSE against numpy's least squares and normal equations, and the pairs it learns from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from ppbench.attacks import _ridge
from ppbench.attacks._simulate import joined, known_pairs, simulate
from ppbench.data import Images
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.view import Algorithm, Pairs, Sealed, View


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(seed))


def smooth(count: int, side: int, seed: int, channels: int = 3) -> Tensor:
    return F.interpolate(noise(seed, count, channels, side // 4, side // 4), side, mode="bicubic").clamp(0, 1)


def split_fit(released: Tensor, plain: Tensor, held: int) -> dict[str, Tensor]:
    return _ridge.fit(released[held:], plain[held:], released[:held], plain[:held])


def mse(found: dict[str, Tensor], released: Tensor, plain: Tensor) -> float:
    estimate = _ridge.apply(found, released, tuple(plain.shape[1:]))
    return float((estimate - plain).square().mean())


def test_a_global_linear_map_is_found_as_least_squares_finds_it() -> None:
    # shapes that share no tiling: 12 values in 1 x 12 pixels, 2 x 2 pixels out
    x = noise(0, 200, 1, 1, 12)
    true = 0.08 * noise(1, 12, 4)
    y = (x.flatten(1) @ true + 0.02 * torch.randn(200, 4, generator=generator(2))).reshape(200, 1, 2, 2).clamp(0, 1)
    found = split_fit(x, y, 50)
    assert "local_weight" not in found
    inputs = np.concatenate([x[50:].flatten(1).numpy(), np.ones((150, 1))], 1)
    reference = np.linalg.lstsq(inputs, y[50:].flatten(1).numpy(), rcond=None)[0]
    fitted = found["global_left"] @ found["global_right"]
    assert torch.allclose(fitted, torch.from_numpy(reference[:12]).float(), atol=0.01)
    assert mse(found, x[:50], y[:50]) < 1.1 * 0.02**2


@pytest.mark.parametrize(("images", "values"), [(40, 6), (6, 40)])
def test_the_path_meets_ridge_at_its_penalty(images: int, values: int) -> None:
    """Primal and dual: the weights solve the normal equations for the penalty that is best on the hold-out."""
    x, y = noise(0, images, 1, 1, values), noise(1, images, 1, 1, 3)
    held_x, held_y = noise(2, 30, 1, 1, values), noise(3, 30, 1, 1, 3)
    found = _ridge._fit_global(_ridge.Pairs(x, y, held_x, held_y))
    weights = (found["global_left"] @ found["global_right"]).double()
    a, b = (t.flatten(1).double() - t.flatten(1).double().mean(0) for t in (x, y))
    scatter = a.T @ a
    rank = min(images - 1, values)
    unit = torch.linalg.eigvalsh(scatter).flip(0)[:rank].mean()
    held_a, held_b = held_x.flatten(1) - x.flatten(1).mean(0), held_y.flatten(1) - y.flatten(1).mean(0)
    path = [torch.linalg.solve(scatter + penalty * unit * torch.eye(values, dtype=torch.float64), a.T @ b)
            for penalty in _ridge._LAMBDAS] + [torch.zeros(values, 3, dtype=torch.float64)]
    best = min(path, key=lambda w: float((held_a.double() @ w - held_b).square().sum()))
    assert torch.allclose(weights, best, atol=1e-5)


def test_moments_are_those_of_unfolded_windows() -> None:
    released, plain = noise(0, 5, 2, 6, 6), noise(1, 5, 1, 12, 12)
    moments = _ridge._moments(_ridge.Cell(block=4, step=2, margin=1), released, plain, 10**9)
    windows = F.unfold(F.pad(released, [1] * 4, mode="replicate"), 4, stride=2).transpose(1, 2).reshape(-1, 32).double()
    blocks = F.unfold(plain, 4, stride=4).transpose(1, 2).reshape(-1, 16).double()
    assert moments.count == len(windows) == 45
    xx, xy = moments.about(windows.mean(0), blocks.mean(0))
    assert torch.allclose(xx, 44 * torch.cov(windows.T))
    assert torch.allclose(xy, (windows - windows.mean(0)).T @ blocks)


def test_a_map_that_differs_by_the_place_in_a_block_is_found() -> None:
    """Every second row is negated: one map for all places cannot undo it, one for blocks of 2 can."""
    plain = noise(0, 40, 1, 8, 8)
    released = plain.clone()
    released[:, :, ::2] = 1 - released[:, :, ::2]
    found = split_fit(released, plain, 10)
    assert _ridge._block(found["local_weight"], 1) % 2 == 0
    assert mse(found, released[:10], plain[:10]) < 1e-6


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (3, 16, 12), (1, 5, 5)])
def test_the_identity_is_learnt_and_applied_in_any_shape(shape: tuple[int, int, int]) -> None:
    plain = noise(0, 20, *shape)
    found = split_fit(plain, plain, 5)
    assert mse(found, noise(1, 3, *shape), noise(1, 3, *shape)) < 1e-6


def test_half_size_mixtures_are_undone_better_than_by_the_mean() -> None:
    plain = smooth(60, 16, 0)
    released = F.avg_pool2d(plain, 2)
    found = split_fit(released, plain, 15)
    assert found["local_weight"].shape[0] in (12, 48, 192, 768)
    assert mse(found, released[:15], plain[:15]) < 0.1 * float((plain[:15] - plain[15:].mean(0)).square().mean())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 12), held=st.integers(1, 4))
def test_never_worse_on_the_hold_out_than_the_mean(seed: int, count: int, held: int) -> None:
    plain, released = noise(seed, count + held, 1, 4, 4), noise(seed + 1, count + held, 2, 4, 4)
    found = split_fit(released, plain, held)
    assert mse(found, released[:held], plain[:held]) <= mse({"mean": plain[held:].mean(0)}, released[:held],
                                                            plain[:held])


@pytest.mark.parametrize("released", [3, 1], ids=["local and global", "global"])
def test_the_same_form_is_found_again_from_the_same_pairs(released: int) -> None:
    plain = smooth(60, 16, 0)
    seen = torch.cat([F.avg_pool2d(plain, 2), noise(1, 60, 1, 8, 8)], 1) if released == 3 else plain.flatten(1)[:, ::3]
    seen = seen.reshape(60, -1, 8, 8) if released == 3 else seen.reshape(60, 1, 1, -1)
    found = split_fit(seen, plain, 15)
    again = _ridge.again(found, seen[15:], plain[15:], seen[:15], plain[:15])
    assert again.keys() == found.keys()
    assert all(again[name].shape == found[name].shape for name in found if "global" not in name)
    assert mse(again, seen[:15], plain[:15]) < 1.1 * mse(found, seen[:15], plain[:15])


def test_the_effort_of_a_global_map_grows_with_pairs() -> None:
    x, y = noise(0, 40, 1, 1, 12), noise(1, 40, 1, 2, 2)
    found = _ridge._fit_global(_ridge.Pairs(x[10:], y[10:], x[:10], y[:10])) | {"mean": y.mean(0)}
    few, many = (_ridge.effort(found, pairs, (1, 2, 2)) for pairs in (6, 60))
    assert 0 < few < many
    assert _ridge.effort({"mean": y.mean(0)}, 60, (1, 2, 2)) == 0


def test_the_same_pairs_give_the_same_estimator() -> None:
    plain, released = smooth(20, 16, 0), smooth(20, 16, 1)
    one, other = (split_fit(released, plain, 5) for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def view_of(name: str, params: dict[str, object], scope: str | None, public: Images,
            pairs: Pairs | None = None) -> View:
    granted = {"public", "algorithm"} | ({"pairs"} if pairs else set())
    return View(Sealed(granted=frozenset(granted), image_shape=public.shape, released_shape=public.shape, n_targets=1,
                       classes=2, public=public, algorithm=Algorithm(Ref("defenses", name, params), scope, 8),
                       pairs=pairs))


def public_images(count: int = 12, side: int = 16) -> Images:
    return Images(smooth(count, side, 3), torch.arange(count) % 2, torch.arange(count))


def test_simulated_pairs_belong_together_and_are_drawn_anew() -> None:
    public = public_images()
    view = view_of("patch-shuffle", {}, "image", public)
    rng = generator(0)
    one, other = simulate(view, public, rng), simulate(view, public, rng)
    assert torch.equal(one.plain, public.pixels)
    assert torch.equal(one.labels, public.labels)
    assert not torch.equal(one.released, other.released)
    sorted_plain = (one.plain * 255).round().flatten(1).sort(1).values
    assert torch.equal((one.released * 255).round().flatten(1).sort(1).values, sorted_plain)
    assert len(joined([one, other])) == 24


def test_a_release_without_partners_is_assigned_within_its_classes() -> None:
    public = public_images()
    view = view_of("bn-synthesis", {"steps": 2, "teacher_epochs": 1}, None, public)
    made = simulate(view, public, generator(0))
    release = view.algorithm.protect(public, generator(0)).images
    assert len(made) == 12
    for label in (0, 1):
        mine = made.labels == label
        theirs = release[public.labels == label].flatten(1).double()
        ours = public.pixels[public.labels == label].flatten(1).double()
        costs = torch.cdist(theirs, ours).square().numpy()
        best = costs[linear_sum_assignment(costs)].sum()
        assert float((made.released[mine] - made.plain[mine]).double().square().sum()) == pytest.approx(best, rel=1e-4)


def test_known_pairs_are_those_granted() -> None:
    public = public_images()
    pairs = Pairs(public.pixels[:3], public.pixels[3:6])
    found = known_pairs(view_of("none", {}, None, public, pairs))
    assert found is not None
    assert torch.equal(found.released, pairs.protected)
    assert found.labels.tolist() == [-1] * 3
    assert known_pairs(view_of("none", {}, None, public)) is None
