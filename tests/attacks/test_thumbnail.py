"""The thumbnail attack: its solver against dense algebra, what it must return exactly, and where it must give up."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from release_views import attacked, cifar, errors, natural, view_of
from scipy.fft import dctn
from torch import Tensor
from torch.nn import functional as F

from ppbench.attacks._affine import AffineMap, affine_map
from ppbench.attacks._inverter import loss_of
from ppbench.attacks._wiener import Spectrum, Wiener, dct, idct, solve
from ppbench.attacks.thumbnail import Thumbnail
from ppbench.attacks.unet_inverter import UnetInverter
from ppbench.data import Images
from ppbench.defense import Defense, Keys, PerImageDefense, Release, resize
from ppbench.metrics import ssim
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator

PRIVATE, PUBLIC = natural(6, (3, 16, 16), 0), natural(60, (3, 16, 16), 1)
CLOSED = Thumbnail(steps=0)
LINEAR = [("mixup", {"patch": 4}), ("mixup", {"patch": 8}), ("pixelate", {"block": 4}), ("blur", {"sigma": 1.0})]


def defense(name: str, **params: object) -> Defense:
    built: Defense = build(Ref("defenses", name, params))
    return built


def matrix(through: AffineMap, shape: tuple[int, int, int]) -> Tensor:
    """The map as a dense matrix, column by column."""
    size = shape[0] * shape[1] * shape[2]
    return through.forward(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).T


def test_the_cosine_basis_is_scipys_and_orthonormal() -> None:
    images = torch.rand(2, 3, 6, 9, dtype=torch.float64)
    assert torch.allclose(dct(images), torch.from_numpy(dctn(images.numpy(), axes=(2, 3), norm="ortho")))
    assert torch.allclose(idct(dct(images)), images)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
def test_conjugate_gradients_solve_what_a_dense_solver_solves(seed: int, size: int) -> None:
    rng = generator(seed)
    root = torch.randn(size, size, generator=rng, dtype=torch.float64)
    spd = root @ root.T + torch.eye(size, dtype=torch.float64)
    right = torch.randn(3, size, generator=rng, dtype=torch.float64)
    right[0] = 0
    found = solve(lambda u: u @ spd, lambda u: u / spd.diagonal(), right, steps=500, tolerance=1e-10)
    assert torch.allclose(found, torch.linalg.solve(spd, right.T).T, atol=1e-6)
    assert found[0].abs().max() == 0


@pytest.mark.parametrize(("name", "params"), LINEAR)
def test_the_estimate_is_the_dense_posterior_mean(name: str, params: dict[str, object]) -> None:
    shape = (3, 8, 8)
    public = natural(40, shape, 1).pixels
    through = affine_map(defense(name, **params), shape)
    assert through is not None
    # far from black and white, so that nothing is clipped
    private = 0.5 + 0.3 * (natural(2, shape, 0).pixels - 0.5)
    prior, noise = Spectrum.of(0.5 + 0.3 * (public - 0.5)), 1e-4
    released = through(private.double())
    found = Wiener.of(through, prior, noise, shape, 500).estimate(released)
    size = 192
    cov = prior.spread(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1)
    a = matrix(through, shape)
    mean = prior.mean[:, None, None].expand(shape)
    left = (released - through(mean[None])).flatten(1)
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + noise * torch.eye(len(a), dtype=torch.float64))
    assert torch.allclose(found.double(), mean + (left @ gain.T).reshape(-1, *shape), atol=2e-3)


def test_the_spectrum_spreads_as_it_draws() -> None:
    prior = Spectrum.of(natural(30, (3, 8, 8), 0).pixels)
    draws = prior.draw(20000, generator(0)).flatten(1)
    dense = prior.spread(torch.eye(192, dtype=torch.float64).reshape(192, 3, 8, 8)).flatten(1)
    assert torch.allclose(dense, dense.T)
    assert torch.linalg.eigvalsh(dense).min() > 0
    assert float((draws.T @ draws / 20000 - dense).norm() / dense.norm()) < 0.1


@pytest.mark.parametrize(("name", "params"), LINEAR)
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 24)])
def test_forward_and_adjoint_are_a_pair(name: str, params: dict[str, object], shape: tuple[int, int, int]) -> None:
    through = affine_map(defense(name, **params), shape)
    assert through is not None
    x = torch.randn(2, *shape, dtype=torch.float64)
    y = torch.randn_like(through.forward(x))
    assert torch.allclose((through.forward(x) * y).sum(), (x * through.adjoint(y)).sum())


def test_an_image_that_is_done_waits_for_the_others() -> None:
    shape = (1, 32, 32)
    through = affine_map(defense("pixelate", block=8), shape)
    assert through is not None
    smooth = resize(torch.rand(1, 1, 4, 4, generator=generator(0)), shape)
    plain = torch.cat([0.3 + 0.4 * smooth, (smooth > smooth.median()).float()]).double()  # the second is clipped
    released = through(plain)
    solver = Wiener.of(through, Spectrum.smooth(plain), (1 / 255)**2 / 12, shape, 200)
    found = solver.estimate(released)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[:1], solver.estimate(released[:1]), atol=1e-3)
    assert torch.allclose(through(found[:1].double()), released[:1], atol=0.5 / 255)
    assert torch.allclose(solver.mended(plain, released).double(), plain, atol=1e-6)


@pytest.mark.parametrize(("name", "params"), LINEAR)
def test_the_estimate_has_the_release_it_came_from(name: str, params: dict[str, object]) -> None:
    view = view_of(PRIVATE, PUBLIC, name, params)
    found = attacked(CLOSED, view)
    again = view.algorithm.protect(Images(found.images, PRIVATE.labels, PRIVATE.ids), generator(0)).images
    # a blur's release holds noise that no likely image explains: two levels
    assert (again - view.images).abs().max() <= (2.01 if name == "blur" else 1.01) / 255
    error = errors(found.images, PRIVATE.pixels).mean()
    assert error < errors(resize(view.images, view.image_shape), PRIVATE.pixels).mean()


def test_patch_means_of_mixup_come_back_exactly() -> None:
    """The thumbnail: the mean of every patch is released to half a level of 8 bit, and the estimate keeps it."""
    found = attacked(CLOSED, view_of(PRIVATE, PUBLIC, "mixup")).images
    off = F.avg_pool2d(found, 4) - F.avg_pool2d(PRIVATE.pixels, 4)
    assert off.abs().max() <= 1 / 510 + 1e-4


def test_no_defense_is_no_obstacle() -> None:
    found = attacked(CLOSED, view_of(PRIVATE, PUBLIC, "none"))
    assert ssim(found.images, PRIVATE.pixels).min() > 0.999


def test_a_float_release_of_a_blur_gives_more_than_an_8_bit_one() -> None:
    fine, coarse = (attacked(CLOSED, view_of(PRIVATE, PUBLIC, "blur", {"sigma": 1.5}, quantise=bits)).images
                    for bits in (0, 8))
    assert errors(fine, PRIVATE.pixels).mean() < 0.7 * errors(coarse, PRIVATE.pixels).mean()


@pytest.mark.parametrize(("name", "scope"), [("patch-shuffle", "image"), ("block-scrambling", "global"),
                                             ("gaussian-noise", None), ("instahide", "image")])
def test_what_is_keyed_or_random_comes_back_as_released(name: str, scope: str | None) -> None:
    view = view_of(PRIVATE, PUBLIC, name, scope=scope)
    found = attacked(CLOSED, view)
    assert found.note == "degenerate: as-released"
    assert torch.equal(found.images, resize(view.images, view.image_shape))


@dataclass(frozen=True)
class Odd(PerImageDefense):
    """One fault at a time."""

    fault: str = ""

    def encrypt(self, images: Tensor, key: dict[str, Tensor], rng: torch.Generator) -> Tensor:
        return {"square": images**2,
                "threshold": (images > 0.5).to(images),
                "company": images.mean(0, True) + 0 * images,
                "random": images + 0.01 * torch.rand(1, generator=rng),
                "numpy": torch.from_numpy(images.detach().numpy() * 0.5),
                "": 0.5 * images.flip(3) + 0.2}[self.fault]


@pytest.mark.parametrize("fault", ["square", "threshold", "company", "random", "numpy"])
def test_only_fixed_linear_differentiable_maps_of_single_images_are_taken(fault: str) -> None:
    assert affine_map(Odd(fault), (3, 8, 8)) is None


def test_an_affine_map_is_taken_with_its_offset() -> None:
    through = affine_map(Odd(), (1, 4, 4))
    assert through is not None
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.allclose(through(x), 0.5 * x.flip(3) + 0.2)


def test_a_defense_that_takes_no_double_is_given_up() -> None:
    class Single(Defense):
        def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
            images = F.conv2d(private.pixels, torch.ones(3, 3, 1, 1))
            return Release(images, private.labels, torch.arange(len(private)))

    assert affine_map(Single(), (3, 8, 8)) is None


@pytest.mark.parametrize(("shape", "params"), [((1, 16, 16), {}), ((3, 12, 20), {}), ((3, 14, 14), {"patch": 2})])
def test_grey_and_oblong_images_and_one_target(shape: tuple[int, int, int], params: dict[str, object]) -> None:
    found = attacked(CLOSED, view_of(natural(1, shape, 0), natural(20, shape, 1), "mixup", params))
    assert found.images.shape == (1, *shape)


def test_odd_sides() -> None:
    shape = (3, 15, 11)
    attacked(CLOSED, view_of(natural(2, shape, 0), natural(9, shape, 1), "blur", {"sigma": 1.0}))


@pytest.mark.parametrize("count", [1, 2])
def test_hardly_any_public_images(count: int) -> None:
    attacked(CLOSED, view_of(PRIVATE, PUBLIC[:count], "mixup"))


def test_the_same_view_gives_the_same_estimate() -> None:
    view = view_of(PRIVATE, PUBLIC, "mixup")
    assert torch.equal(attacked(CLOSED, view).images, attacked(CLOSED, view).images)


@pytest.mark.parametrize("bad", [{"iterations": 0}, {"steps": -1}, {"batch": 0}, {"width": 0}, {"rate": 0.0}])
def test_parameters_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is"):
        Thumbnail(**bad)


@pytest.mark.real
@pytest.mark.slow
def test_what_is_learnt_is_released_as_seen_and_nearer() -> None:
    private, public = cifar(12, 200)
    view = view_of(private, public, "mixup")
    closed, found = attacked(CLOSED, view), attacked(Thumbnail(steps=120, width=16), view)
    assert found.note.startswith("learned, own keys; step 120 of 120")
    again = view.algorithm.protect(Images(found.images, private.labels, private.ids), generator(0)).images
    off = (again - view.images).abs()  # more than a level only where estimates were clipped to black or white
    assert (off > 1.01 / 255).float().mean() < 0.002
    assert loss_of(found.images, private.pixels).mean() < 0.99 * loss_of(closed.images, private.pixels).mean()


def test_what_is_learnt_badly_is_not_used() -> None:
    """Two public images teach a network nothing that a power spectrum does not know better."""
    found = attacked(Thumbnail(steps=2, batch=2, width=8, depth=1), view_of(PRIVATE, PUBLIC[:8], "pixelate"))
    assert found.note.startswith("most likely under")


def test_the_network_is_shared_with_the_inverter_of_the_same_settings() -> None:
    view = view_of(PRIVATE, PUBLIC, "mixup")
    assert Thumbnail().priors(view)["learned"] == UnetInverter().priors(view)["inverter"]


def test_nothing_is_learnt_where_there_is_no_linear_map() -> None:
    assert set(Thumbnail().priors(view_of(PRIVATE, PUBLIC, "patch-shuffle", scope="image"))) == {"natural"}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("mixup", 0.75), ("blur", 0.84)])
def test_cifar_10(name: str, least: float) -> None:
    """While planning: linear MMSE of mix-up .783 (bilinear .544), Wiener of a blur of sigma 2 in 8 bit .855."""
    private, public = cifar(64, 600)
    found = attacked(CLOSED, view_of(private, public, name))
    assert ssim(found.images, private.pixels).mean() > least
