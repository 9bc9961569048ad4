"""The jigsaw attack where there is nothing to solve or too much, and the same result for the same seed."""

from dataclasses import replace

import pytest
import torch
from jigsaw_pieces import crops, neighbours, photos
from jigsaw_views import FEW, PUBLIC, SCRAMBLED, ciphers, images_of, scrambled_view, shuffled_view, without_public
from release_views import attacked, view_of

from ppbench.attacks import _solving
from ppbench.errors import UserError
from ppbench.plugins import build
from ppbench.ref import Ref
from ppbench.seeding import generator

# --- nothing to solve, and what is refused

@pytest.mark.parametrize(("name", "params"), [("none", {}), ("mixup", {"patch": 4}),
                                              ("block-scrambling", {"preset": "pe"}),
                                              ("block-scrambling", {"preset": "le"})])
def test_nothing_permuted_is_degenerate(name: str, params: dict[str, object]) -> None:
    scope = "global" if name == "block-scrambling" else None
    view = view_of(images_of(photos(2, 32, 32)), PUBLIC, name, params, scope)
    found = attacked(FEW, view)
    assert found.note.startswith("degenerate: as-released")
    if view.released_shape == view.image_shape:
        assert torch.equal(found.images, view.images)


@pytest.mark.parametrize("cipher", ["moved", "etc"])
@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize("shape", [(16, 16), (16, 8), (8, 16)])
def test_flat_images_pass_through(cipher: str, scope: str, shape: tuple[int, int]) -> None:
    flat = torch.full((2, 3, *shape), 0.4)
    attack = replace(FEW, linear=False, repair=True, anneal=2)
    view = scrambled_view(flat, cipher, 4, scope, crops(4, 16))
    found = attacked(attack, view)
    if cipher == "moved":
        torch.testing.assert_close(found.images, view.images)
    assert (found.images.sub(0.5).abs() - 0.1).abs().max() < 0.01  # or else negatives


def test_the_linear_program_survives_flat_images() -> None:
    view = shuffled_view(torch.full((2, 3, 16, 16), 0.4), 4, crops(4, 16))
    torch.testing.assert_close(attacked(replace(FEW, linear=True), view).images, view.images)


@pytest.mark.parametrize("cipher", ["moved", "etc"])
@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize("public", [False, True])
def test_a_single_piece_passes_through(cipher: str, scope: str, public: bool) -> None:
    images = photos(2, 16, 16)
    view = scrambled_view(images, cipher, 16, scope, crops(8, 16))
    found = attacked(FEW, view if public else without_public(view))
    assert neighbours(found.images, images, SCRAMBLED[cipher][0], 16).tolist() == [1, 1]
    if cipher == "moved" or not public:
        torch.testing.assert_close(found.images, view.images)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (8, 24)])
@pytest.mark.parametrize("cipher", ["moved", "etc"])
def test_rows_and_columns_of_pieces_are_laid(shape: tuple[int, int], cipher: str) -> None:
    images = photos(3, *shape)
    public = replace(crops(8, 32), pixels=crops(8, 32).pixels[:, :, :shape[0], :shape[1]].contiguous())
    found = attacked(replace(FEW, repair=True, anneal=3), scrambled_view(images, cipher, 8, "image", public))
    scores = neighbours(found.images, images, SCRAMBLED[cipher][0], 8)
    assert scores.isfinite().all()
    assert scores.mean() >= 0.5


@pytest.mark.parametrize(("params", "words"), [
    ({"restarts": 0}, "restarts"), ({"effort": 0}, "effort"), ({"joint": 0}, "joint"), ({"width": 0}, "width"),
    ({"steps": -1}, "steps"), ({"anneal": -1}, "anneal"), ({"rate": 0.0}, "rate"),
    ({"place_steps": -1}, "place_steps")])
def test_senseless_parameters_are_refused(params: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=f"{words} is"):
        build(Ref("attacks", "jigsaw", params))


@pytest.mark.parametrize("scope", ["image", "global"])
@pytest.mark.parametrize("public", [False, True])
def test_tables_beyond_memory_are_refused_in_words(scope: str, public: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is learnt, where there is something to learn from."""
    view = scrambled_view(photos(2, 64, 64), "etc", 16, scope)
    view = view if public else without_public(view)
    entries = 4 * 16**2 * 96
    monkeypatch.setattr(_solving, "_MOST", entries)
    attacked(FEW, view)
    monkeypatch.setattr(_solving, "_MOST", entries - 1)
    with pytest.raises(UserError, match=r"16 pieces in 96 states .* choose larger pieces"):
        FEW.priors(view) if public else FEW.run(view, {}, generator(0))


# --- the same again

@ciphers
def test_the_same_generator_state_gives_the_same_images(cipher: str) -> None:
    view = scrambled_view(photos(2, 64, 64), cipher, 8, "image")
    before, plain = torch.random.get_rng_state(), view.images.clone()
    first, second = (attacked(FEW, view).images for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(view.images, plain)
