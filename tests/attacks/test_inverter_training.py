"""How inverters are trained: what they see, what is held out, and that they learn."""

from dataclasses import dataclass

import pytest
import torch
from inverter_views import CIPHER, NONE, QUICK, both, smooth, toy, trained, view_of, with_defense
from torch import Tensor

from ppbench.attacks._inverter import InverterAttack, InverterPrior, Problem, loss_of
from ppbench.attacks._inverter_unet import UNet
from ppbench.attacks._inverter_vit import VitCodec
from ppbench.attacks._pairs import augmented, halves
from ppbench.attacks._simulate import Simulated
from ppbench.attacks.unet_inverter import UnetInverter, UnetPrior
from ppbench.attacks.vit_inverter import VitInverter, VitPrior
from ppbench.codec import Tensors
from ppbench.data import Images, Shape
from ppbench.defense import Defense, Keys, PerImageDefense, Release
from ppbench.metrics import ssim
from ppbench.seeding import generator


@pytest.mark.parametrize("upside_down", [False, True])
def test_augmented_images_are_moved_and_mirrored_copies(upside_down: bool) -> None:
    side = 16
    pixels = torch.arange(side * side).reshape(1, 1, side, side).expand(64, 1, side, side).float()
    seen = augmented(pixels, generator(0), upside_down)
    assert seen.shape == pixels.shape
    middle = slice(4, 12)
    turned = torch.zeros(2, 2)
    for image in seen[:, 0]:
        down, across = (float(step) for step in (image[9, 8] - image[8, 8], image[8, 9] - image[8, 8]))
        assert abs(down) == side
        assert abs(across) == 1
        turned[int(down < 0), int(across < 0)] += 1
        assert torch.equal(image[middle, 8].diff(), torch.full((7,), down))
        assert torch.equal(image[8, middle].diff(), torch.full((7,), across))
        assert abs(float(image[8, 8]) // side - (7 if down < 0 else 8)) <= 2
    assert (turned[: 1 + upside_down] > 6).all()
    assert turned[1].sum() == 0 or upside_down


def test_the_loss_is_l1_and_ssim() -> None:
    x, y = (torch.rand(4, 3, 16, 16, generator=generator(k)) for k in (0, 1))
    expected = (x - y).abs().flatten(1).mean(1) + 1 - ssim(x, y)
    assert torch.allclose(loss_of(x, y), expected.float(), atol=1e-4)
    small = loss_of(x[..., :8, :8], y[..., :8, :8])
    assert torch.allclose(small, (x - y)[..., :8, :8].abs().flatten(1).mean(1))


def test_held_out_pairs_are_not_learnt_from() -> None:
    rows = torch.arange(10)
    pairs = Simulated(rows[:, None, None, None].float(), rows[:, None, None, None].float(), rows)
    some, held = halves(pairs)
    assert held.labels.tolist() == [0, 4, 8]
    assert sorted(some.labels.tolist() + held.labels.tolist()) == rows.tolist()


@dataclass(frozen=True)
class Turned(PerImageDefense):
    """Invertible, but far from linear: grey levels go round by half a turn."""

    def encrypt(self, images: Tensor, key: Tensors, rng: torch.Generator) -> Tensor:
        return (images + 0.5) % 1


@pytest.mark.parametrize("attack", [VitInverter(steps=200, batch=16, width=32, depth=1, rate=5e-3),
                                    UnetInverter(steps=150, batch=16, width=16, depth=2, rate=5e-3)],
                         ids=["vit", "unet"])
def test_a_map_that_is_not_linear_is_learnt(attack: InverterAttack) -> None:
    defense, private = Turned(), smooth(6, (1, 16, 16), 1)
    view = with_defense(view_of(private, smooth(64, (1, 16, 16)), defense, NONE, targets=6), defense)
    priors = trained(attack, view)
    linear = attack.prior().load(priors["inverter"], view).base.apply(view.images, view.image_shape)
    found = attack.run(view, priors, generator(0)).images
    error, before = ((x - private.pixels).abs().mean() for x in (found, linear))
    assert error < 0.7 * before


@dataclass(frozen=True)
class Synthetic(Defense):
    """No partners: the mean of each class in noise."""

    partnered = False

    def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
        noise = torch.rand(private.pixels.shape, generator=rng)
        mean = torch.stack([private.pixels[private.labels == label].mean(0) for label in private.labels])
        return Release((0.9 * mean + 0.1 * noise).clamp(0, 1), private.labels, None)


@both
def test_without_partners_the_defense_runs_once_and_the_result_is_a_set(attack: InverterAttack) -> None:
    calls = []

    @dataclass(frozen=True)
    class Counted(Synthetic):
        def protect(self, private: Images, keys: Keys | None, rng: torch.Generator) -> Release:
            calls.append(len(private))
            return super().protect(private, keys, rng)

    defense = Counted()
    view = with_defense(view_of(smooth(6, (3, 16, 16), 1), smooth(24, (3, 16, 16)), defense, NONE), defense)
    calls.clear()
    found = attack.run(view, trained(attack, view), generator(0))
    assert calls == [24]
    assert not found.aligned


def test_own_keys_are_drawn_anew_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    view = toy(ref=CIPHER, scope="global")
    defense = view.algorithm.defense
    draw = type(defense).keys

    def recorded(self: Defense, count: int, shape: Shape, rng: torch.Generator) -> Tensors:
        keys = draw(self, count, shape, rng)
        drawn.append(keys["pixels"])
        return keys

    monkeypatch.setattr(type(defense), "keys", recorded)
    trained(QUICK[0], view)
    every = torch.cat(drawn)
    assert len(every) >= 24 + 3 * 8
    assert len(every.unique(dim=0)) == len(every)


def test_priors_are_dataclasses_of_their_own() -> None:
    for prior, net in ((VitPrior, VitCodec), (UnetPrior, UNet)):
        made: InverterPrior = prior(1, 1, 16, 1, 1e-3, amp=False)
        assert isinstance(made.network(Problem((3, 16, 16), (3, 16, 16), 2, None, free=False)), net)
