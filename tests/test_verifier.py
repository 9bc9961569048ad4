"""Verification: a reconstruction against other photos of the person, by features of other people."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_plan, tiny_run
from torch.nn import functional as F

from ppbench import verifier
from ppbench.data import Images
from ppbench.errors import UserError
from ppbench.seeding import generator
from ppbench.verifier import Album, Verifier, train_verifier


class Known(Verifier):
    """Features are the first two values of an image."""

    def __init__(self) -> None:
        pass

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(images.flatten(1)[:, :2], dim=1)


def photos(*rows: tuple[int, float, float]) -> Images:
    pixels = torch.zeros(len(rows), 1, 1, 2)
    pixels[:, 0, 0] = torch.tensor([[x, y] for _, x, y in rows])
    return Images(pixels, torch.tensor([label for label, _, _ in rows]), torch.arange(len(rows)))


def people(count: int, each: int, side: int, first: int = 0, seed: int = 0) -> Images:
    """Every person a pattern of their own, every photo with noise and in a light of its own."""
    rng = generator(seed)
    faces = F.interpolate(torch.rand(count, 1, 6, 6, generator=rng), (side, side), mode="bilinear")
    pixels = faces.repeat_interleave(each, 0)
    pixels = 0.15 + 0.6 * pixels + 0.1 * torch.rand(len(pixels), 1, 1, 1, generator=rng)
    pixels = pixels + 0.08 * torch.randn(pixels.shape, generator=rng)
    labels = first + torch.arange(count).repeat_interleave(each)
    return Images(pixels.clamp(0, 1), labels, torch.arange(len(labels)))


def test_an_estimate_is_held_against_other_photos_of_its_person() -> None:
    """Two people at right angles, and one photo of the first that looks like the second."""
    album = Album(Known(), photos((0, 1, 0), (1, 0, 1), (0, 1, 0.1), (0, 0, 1), (1, 0.1, 1)), 2)
    assert album.others.tolist() == [[False, False, True, True, False], [False, False, False, False, True]]
    assert float(album.threshold) == pytest.approx(1.0)  # photos 3 and 1 are of strangers and the same
    album.threshold = torch.tensor(0.9)
    assert album.verified(photos((0, 1, 0), (1, 0, 1)).pixels).tolist() == [0.5, 1.0]
    assert album.verified(photos((0, 0, 1), (1, 1, 0)).pixels).tolist() == [0.5, 0.0]
    assert album.verified(photos((0, 1, 1), (1, 1, 1)).pixels).tolist() == [0.0, 0.0]


def test_the_threshold_lets_one_stranger_in_a_hundred_pass() -> None:
    rng = generator(0)
    rows = [(i % 20, *torch.randn(2, generator=rng).tolist()) for i in range(200)]
    album = Album(Known(), photos(*rows), 20)
    likeness = album.features @ album.features.T
    labels = torch.tensor([label for label, _, _ in rows])
    passed = (likeness > album.threshold)[labels[:, None] != labels].double().mean()
    assert float(passed) == pytest.approx(0.01, abs=1e-3)


def test_who_has_no_other_photo_is_not_scored() -> None:
    album = Album(Known(), photos((0, 1, 0), (1, 0, 1), (1, 0, 1)), 2)
    found = album.verified(photos((0, 1, 0), (1, 0, 1)).pixels)
    assert found.isnan().tolist() == [True, False]


def test_one_person_alone_cannot_be_told_from_others() -> None:
    with pytest.raises(UserError, match="at least two private classes"):
        Album(Known(), photos((0, 1, 0), (0, 0, 1)), 1)


@pytest.mark.parametrize("side", [24, 48])
def test_people_who_were_never_seen_are_told_apart(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_STEPS", 60)
    reader = Verifier(train_verifier(people(12, 8, side, seed=1), generator(0)))
    private = people(8, 8, side, first=20, seed=2)
    found = reader.features(private.pixels)
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)))
    assert torch.allclose(found, reader.features(private.pixels.flip(3)), atol=1e-5)
    album = Album(reader, private, 16)
    assert float(album.plain.mean()) > 0.5
    assert torch.equal(album.verified(private.pixels[:16]), album.plain)
    assert float(album.verified(people(16, 1, side, seed=3).pixels).mean()) < 0.2
    assert float(album.verified(torch.full((16, 1, side, side), 0.5)).mean()) < 0.2


def test_what_cannot_be_learnt_from_is_told() -> None:
    with pytest.raises(UserError, match="two classes"):
        train_verifier(people(1, 8, 32), generator(0))
    with pytest.raises(UserError, match="at least 16 x 16"):
        train_verifier(people(2, 8, 8), generator(0))


def test_rows_tell_how_often_a_person_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_STEPS", 60)
    made = people(20, 9, 24)
    np.savez(tmp_path / "people.npz", train_images=(made.pixels[:, 0] * 255).round().byte().numpy(),
             train_labels=made.labels.numpy())
    table: dict[str, Any] = {"use": f"npz:{tmp_path / 'people.npz'}", "private": 50, "public": 81, "test": 20,
                             "disjoint": True}
    plan = tiny_plan(tmp_path / "people.npz", ["none", "constant"], ["as-released"], dataset=[table], targets=16,
                     score={"groups": ["ssim", "verification"]})
    result, _ = tiny_run(plan, tmp_path)
    assert result.computed["verifier"] == 1
    rows = pd.read_csv(tmp_path / "tiny" / "results.csv").set_index("defense")
    assert rows.status.tolist() == ["ok", "ok"]
    plain = rows.verification_plain
    assert rows.verification["none"] == plain["none"] == plain["constant"] > 0.5
    assert rows.verification["constant"] < 0.2
    assert (rows.verification_floor < 0.2).all()
    assert rows.leakage_verification["none"] == 1
    assert rows.leakage_verification_low["constant"] < 0.1
    assert rows.verification_def.str.contains("1% false accepts").all()
    assert '"disjoint":true' in rows.dataset_params["none"]
    per_image = pd.read_csv(tmp_path / "tiny" / "per_image.csv")
    assert per_image[per_image.defense == "none"].verification.mean() == pytest.approx(plain["none"])
