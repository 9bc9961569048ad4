"""The audit: copies are found however they were disguised, and honest releases are left alone."""

import pytest
import torch
from release_views import natural
from torch import Tensor

from ppbench.audit.copies import Audit, Parts, Space, audit
from ppbench.audit.spaces import by_features, by_pixels
from ppbench.errors import UserError
from ppbench.seeding import generator

SHAPE = (3, 16, 16)
EVERYONE = natural(260, SHAPE, 0).pixels
SEARCHES = {"pixels": lambda images, among: by_pixels(images, among, 1),
            "features": lambda images, among: by_features(images, among, lambda x: x.flatten(1))}


def parts(seed: int, released: Tensor) -> Parts:
    """Private and held-out images, drawn anew for each seed."""
    order = torch.randperm(200, generator=generator(seed))
    return Parts(released, EVERYONE[order[:100]], EVERYONE[order[100:]], EVERYONE[200:])


def disguised(images: Tensor, how: str) -> Tensor:
    noise = 0.015 * torch.randn(images.shape, generator=generator(1))
    return {"same": images, "mirrored": images.flip(3), "shifted": images.roll((1, -1), (2, 3)),
            "noisy": (images + noise).clamp(0, 1), "levels": (images * 31).round() / 31}[how]


@pytest.mark.parametrize("how", ["same", "mirrored", "shifted", "noisy", "levels"])
@pytest.mark.parametrize("count", [1, 4])
def test_planted_copies_are_named(how: str, count: int) -> None:
    given = parts(0, natural(40, SHAPE, 5).pixels)
    rows = torch.arange(count) * 17 + 3
    planted = torch.cat([given.released, disguised(given.private[rows], how)])
    found = audit(Parts(planted, given.private, given.held, given.public), SEARCHES)
    assert found.copied.any(0).nonzero().flatten().tolist() == rows.tolist()
    copied = found.copied.any(1).nonzero().flatten().tolist()
    for each in copied:
        space = list(found.spaces.values())[each]
        assert space.index[rows].tolist() == [40 + i for i in range(count)]
        assert (space.ratio[rows] < space.held.min()).all()


def test_an_honest_release_is_rarely_accused() -> None:
    released = natural(40, SHAPE, 5).pixels
    found = [audit(parts(seed, released), SEARCHES) for seed in range(60)]
    assert sum(bool(each.copied.any()) for each in found) <= 5  # 2.5 % of 60 are 1.5, plus three standard errors
    assert sum(each.near for each in found) <= 5


def test_images_that_are_all_a_little_nearer_are_no_copies() -> None:
    given = parts(0, EVERYONE[:1])
    mixed = (given.private + natural(100, SHAPE, 5).pixels) / 2
    found = audit(Parts(mixed, given.private, given.held, given.public), SEARCHES)
    assert found.near
    assert not found.copied.any()


def test_a_ratio_below_the_named_one_is_a_copy_and_one_above_is_not() -> None:
    given = parts(0, natural(40, SHAPE, 5).pixels)
    found = audit(given, {"pixels": SEARCHES["pixels"]})
    space = found.spaces["pixels"]
    near = found.level / 2 / 100
    assert space.p.min() > near
    assert space.least < space.held.min()


def test_holm_by_hand() -> None:
    """Six p-values: .001 x 6 and .004 x 5 pass .025, .007 x 4 does not, and then .0071 must not either."""
    p = torch.tensor([[0.001, 0.3, 0.007], [0.9, 0.004, 0.0071]]).double()
    held = torch.ones(20)
    spaces = {str(i): Space(torch.ones(3), held, torch.arange(3), row, 1.0, 0.0) for i, row in enumerate(p)}
    assert Audit(spaces, 0.05).copied.tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.parametrize(("closer", "near"), [((0.02, 0.5), False), ((0.012, 0.5), True)])
def test_being_near_in_one_of_two_spaces_counts_half(closer: tuple[float, float], near: bool) -> None:
    spaces = {str(p): Space(torch.ones(3), torch.ones(20), torch.arange(3), torch.ones(3), p, 0.0) for p in closer}
    assert Audit(spaces, 0.05).near == near


@pytest.mark.parametrize("name", ["released", "private", "public"])
def test_parts_that_are_empty_are_named(name: str) -> None:
    given = vars(parts(0, EVERYONE[:5]))
    with pytest.raises(UserError, match=f"needs {name} images"):
        audit(Parts(**{**given, name: torch.empty(0, *SHAPE)}), SEARCHES)
