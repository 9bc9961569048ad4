"""What holds for mixtures of whole images, and for the two defenses that release them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from ppbench.codec import to_bytes8
from ppbench.data import Images
from ppbench.defense import Defense, Keys, Release, draw_keys, keys_for_more
from ppbench.defenses._mixing import Mixture, capped_shares, dirichlet_shares, members
from ppbench.defenses.instahide import InstaHide
from ppbench.defenses.mixup import Mixup
from ppbench.model import Model, for_images
from ppbench.seeding import generator

SEEDS = st.integers(0, 2**32)
COUNTS = st.integers(1, 9)


def some_images(n: int, c: int = 3, h: int = 4, w: int = 6, seed: int = 0) -> Images:
    rng = generator(seed)
    pixels = torch.randint(256, (n, c, h, w), generator=rng).float() / 255
    return Images(pixels, torch.randint(4, (n,), generator=rng), torch.arange(n))


def released(defense: Defense, private: Images, seed: int = 0) -> tuple[Release, Keys | None]:
    scope = defense.key_scopes[0] if defense.key_scopes else None
    keys = draw_keys(defense, scope, len(private), private.shape, generator(seed))
    return defense.protect(private, keys, generator(seed)), keys


def recovered_shares(mixed: Tensor, images: Tensor) -> Tensor:
    """Solve for the weights of every image in every mixture, `[N, N]` (there are more pixels than images)."""
    known, sums = images.flatten(1).double(), mixed.flatten(1).double()
    return torch.linalg.lstsq(known.T, sums.T).solution.T


@settings(deadline=None)
@given(st.data(), COUNTS, SEEDS)
def test_an_image_is_mixed_with_distinct_others(data: st.DataObject, count: int, seed: int) -> None:
    size = data.draw(st.integers(1, count))
    rows = members(count, size, generator(seed))
    assert rows.shape == (count, size)
    assert torch.equal(rows[:, 0], torch.arange(count))
    assert rows.min() >= 0
    assert rows.max() < count
    assert all(len(set(row)) == size for row in rows.tolist())


def test_all_choices_of_partners_are_equally_likely() -> None:
    """Image 0 of 5 with two others, in order: 12 choices; members() draws one row each, so draw often."""
    rows = torch.stack([members(5, 3, generator(seed)) for seed in range(2400)])
    for image in range(5):
        counts = (rows[:, image, 1] * 5 + rows[:, image, 2]).unique(return_counts=True)[1]
        assert len(counts) == 12
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@settings(deadline=None)
@given(COUNTS, st.integers(1, 6), st.floats(0.01, 100), SEEDS)
def test_dirichlet_shares_sum_to_one_the_largest_first(count: int, size: int, alpha: float, seed: int) -> None:
    shares = dirichlet_shares(count, size, alpha, generator(seed))
    assert shares.shape == (count, size)
    assert shares.dtype == torch.float32
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(1), torch.ones(count))
    assert torch.equal(shares, shares.sort(1, descending=True).values)


def test_the_larger_share_of_two_follows_the_folded_beta() -> None:
    """The paper's lambda for two images, once the larger of lambda and 1 - lambda leads."""
    drawn = dirichlet_shares(4000, 2, 0.4, generator(0))[:, 0].double().numpy()
    folded = stats.beta(0.4, 0.4)
    assert stats.kstest(drawn, lambda x: folded.cdf(x) - folded.cdf(1 - x)).pvalue > 0.01


@settings(deadline=None)
@given(COUNTS, st.integers(1, 6), st.floats(0, 1), SEEDS)
def test_capped_shares_stay_below_the_cap(count: int, size: int, height: float, seed: int) -> None:
    """Also where no draw does: then they are pulled towards equal shares, even to the lowest cap there is."""
    cap = 1 / size + height * (1 - 1 / size)
    shares = capped_shares(count, size, cap, generator(seed))
    assert shares.shape == (count, size)
    assert shares.max() <= cap + 1e-6
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(1), torch.ones(count))
    assert torch.equal(shares, shares.sort(1, descending=True).values)


def test_capped_shares_are_half_normals_that_passed_the_cap() -> None:
    """Two half-normals: the largest share m has density proportional to 1 / (m**2 + (1 - m)**2) up to the cap."""
    drawn = capped_shares(4000, 2, 0.65, generator(0))[:, 0].double().numpy()

    def angle(m: Any) -> Any:
        return torch.atan2(torch.as_tensor(2 * m - 1), torch.tensor(1.0, dtype=torch.float64)).numpy()

    assert stats.kstest(drawn, lambda m: angle(m) / angle(0.65)).pvalue > 0.01


@settings(deadline=None)
@given(st.data(), COUNTS, st.sampled_from([1, 3]), SEEDS)
def test_a_mixture_is_the_weighted_sum(data: st.DataObject, n: int, c: int, seed: int) -> None:
    size, private = data.draw(st.integers(1, n)), some_images(n, c, 3, 5, seed)
    mixture = Mixture(members(n, size, generator(seed)), dirichlet_shares(n, size, 1.0, generator(seed)))
    mixed, soft = mixture.mix(private.pixels), mixture.soft_labels(private.labels)
    assert mixed.dtype == torch.float32
    for i in range(n):
        total, shares = torch.zeros(c, 3, 5, dtype=torch.float64), [0.0] * (int(private.labels.max()) + 1)
        for member, share in zip(mixture.members[i].tolist(), mixture.shares[i].tolist(), strict=True):
            total += share * private.pixels[member].double()
            shares[int(private.labels[member])] += share
        torch.testing.assert_close(mixed[i].double(), total, atol=1e-6, rtol=0)
        torch.testing.assert_close(soft[i], torch.tensor(shares))


def test_white_stays_in_the_range() -> None:
    mixture = Mixture(members(50, 7, generator(0)), dirichlet_shares(50, 7, 1.0, generator(0)))
    assert mixture.mix(torch.ones(50, 1, 2, 2)).max() <= 1


@pytest.mark.parametrize(("defense", "size"), [(Mixup(images=2), 2), (Mixup(images=3, alpha=0.3), 3), (InstaHide(), 4),
                                               (InstaHide(images=2), 2)])
def test_the_release_is_made_of_as_many_private_images_as_named(defense: Defense, size: int) -> None:
    """Least squares finds the shares: k of them, image i's the largest, the classes' in soft_labels."""
    private = some_images(12, 3, 6, 8)
    release, keys = released(defense, private)
    mixed = defense.invert(release, keys, private.shape)
    shares = recovered_shares(mixed, private.pixels)
    assert ((shares > 1e-4).sum(1) <= size).all()
    assert ((shares > 1e-4).sum(1) == size).float().mean() > 0.8  # a share may be tiny
    assert torch.equal(shares.argmax(1), torch.arange(12))
    torch.testing.assert_close(shares.sum(1), torch.ones(12, dtype=torch.float64), atol=1e-4, rtol=0)
    assert release.soft_labels is not None
    by_class = shares @ torch.nn.functional.one_hot(private.labels).double()
    torch.testing.assert_close(release.soft_labels.double(), by_class, atol=1e-4, rtol=0)
    if isinstance(defense, InstaHide):
        assert shares.max() <= defense.cap + 1e-4


@pytest.mark.parametrize("defense", [Mixup(images=2), InstaHide()])
def test_labels_and_partners_are_the_leading_images(defense: Defense) -> None:
    private = some_images(10)
    release, _ = released(defense, private)
    assert defense.partnered
    assert torch.equal(release.labels, private.labels)
    assert release.source is not None
    assert torch.equal(release.source, torch.arange(10))
    assert release.images.dtype == torch.float32
    assert release.shape == private.shape


@pytest.mark.parametrize("defense", [Mixup(images=3), InstaHide(images=3)])
def test_mixtures_come_from_the_generator(defense: Defense) -> None:
    before = torch.get_rng_state()
    private = some_images(10)
    keys = draw_keys(defense, "image" if defense.key_scopes else None, 10, private.shape, generator(0))
    first, again, other = (defense.protect(private, keys, generator(seed)).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("defense", [Mixup(images=4), InstaHide()])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_set_of_fewer_images_is_mixed_as_a_whole(defense: Defense, count: int) -> None:
    private = some_images(count)
    release, keys = released(defense, private)
    shares = recovered_shares(defense.invert(release, keys, private.shape), private.pixels)
    assert (shares > 1e-6).all()
    assert defense.query(private.pixels, keys, generator(0)).shape == private.pixels.shape


def test_mixed_up_whole_images_are_tested_plain_and_need_no_patches() -> None:
    defense, images = Mixup(images=2), some_images(3).pixels
    assert torch.equal(defense.query(images, None, generator(0)), images)
    defense.check((3, 7, 5))


def test_mixing_whole_images_leaves_the_model_as_it_is() -> None:
    model = for_images("timm:vit_tiny_patch16_224", {"patch_size": 4}, (3, 32, 32), 5)
    assert Mixup(images=2).adapt(model, None) == model
    assert Mixup().adapt(model, None) != model
    assert InstaHide().adapt(model, None) == model
    assert Mixup(images=2).adapt(Model("timm:resnet18", {}), None) == Model("timm:resnet18", {})


@settings(deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 5), SEEDS)
def test_instahide_flips_the_values_that_the_key_names(n: int, c: int, k: int, seed: int) -> None:
    private = some_images(n, c, 3, 5, seed)
    defense = InstaHide(images=k)
    release, keys = released(defense, private, seed)
    assert keys is not None
    plain = Keys({"signs": torch.zeros_like(keys.values["signs"])}, keys.owner)
    mixed = defense.protect(private, plain, generator(seed)).images
    signs = keys.per_image()["signs"]
    torch.testing.assert_close(release.images, torch.where(signs, 1 - mixed, mixed), atol=1e-6, rtol=0)
    torch.testing.assert_close(defense.invert(release, keys, private.shape), mixed, atol=1e-6, rtol=0)


def test_the_key_holder_gets_the_mixture_exactly_from_an_8_bit_release() -> None:
    private, defense = some_images(6), InstaHide()
    release, keys = released(defense, private)
    assert keys is not None
    sent = Release(to_bytes8(release.images), release.labels, release.source)
    found = defense.invert(sent, keys, private.shape)
    assert torch.equal(found, to_bytes8(defense.invert(release, keys, private.shape)))


def test_signs_alone_give_the_images_back() -> None:
    private, defense = some_images(6), InstaHide(images=1)
    release, keys = released(defense, private)
    assert torch.equal(defense.invert(release, keys, private.shape), private.pixels)


def test_signs_are_fair_coins_of_every_value() -> None:
    signs = InstaHide().keys(20, (3, 16, 16), generator(0))["signs"]
    assert signs.shape == (20, 3, 16, 16)
    assert stats.binomtest(int(signs.sum()), signs.numel()).pvalue > 1e-3
    assert not torch.equal(signs[:, 0], signs[:, 1])
    assert len(signs.flatten(1).unique(dim=0)) == 20


def test_instahide_encrypts_test_images_alike_unless_told_otherwise() -> None:
    tests, defense = some_images(8).pixels, InstaHide()
    assert defense.key_scopes == ("image",)
    private = draw_keys(defense, "image", 8, (3, 4, 6), generator(0))
    keys = keys_for_more(defense, private, "image", 8, (3, 4, 6), generator(1))
    assert private is not None
    assert keys is not None
    assert not torch.equal(private.values["signs"], keys.values["signs"])
    sent = defense.query(tests, keys, generator(0))
    as_release = Release(sent, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    shares = recovered_shares(defense.invert(as_release, keys, (3, 4, 6)), tests)
    assert torch.equal(shares.argmax(1), torch.arange(8))
    assert shares.max() < defense.cap + 1e-4
    assert torch.equal(InstaHide(queries="plain").query(tests, keys, generator(0)), tests)


@pytest.mark.parametrize(("make", "why"), [
    (lambda: Mixup(images=0), "images is 0; it must be at least 1"),
    (lambda: Mixup(images=2, alpha=0.0), "alpha is 0.0"), (lambda: Mixup(alpha=float("nan")), "alpha is nan"),
    (lambda: InstaHide(images=0), "images is 0"), (lambda: InstaHide(images=4, cap=0.2), "cap is 0.2; .*0.25 and 1"),
    (lambda: InstaHide(cap=1.5), "cap is 1.5"), (lambda: InstaHide(cap=float("nan")), "cap is nan"),
    (lambda: InstaHide(queries="masked"), "one of encrypted, plain"),  # type: ignore[arg-type]
])
def test_parameters_out_of_range_are_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
