from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from ppbench.attack import check_reconstruction
from ppbench.attacks._encodings import DEPTH, bits_of_label, synthetic
from ppbench.attacks._payload import carriers, flatten, from_bits, hide, reveal, to_bits, unflatten
from ppbench.attacks.memorization import Memorization
from ppbench.codec import Tensors, to_bytes8
from ppbench.data import Images
from ppbench.defense import Release, resize
from ppbench.defenses.none import NoDefense
from ppbench.lessons import Extended, Same, lesson_of
from ppbench.model import Model
from ppbench.recipe import Recipe
from ppbench.seeding import generator, seeded
from ppbench.victim import start, teach, train
from ppbench.view import Sealed, View

SHAPE = (3, 16, 16)
VALUES = 3 * 16 * 16
RECIPE = Recipe(kwargs={"width": 16, "grid": 4}, epochs=40, batch=20)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def smooth(count: int, seed: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=generator(seed))
    return to_bytes8(nn.functional.interpolate(coarse, SHAPE[1:], mode="bicubic"))


def release(count: int = 40) -> Release:
    images = smooth(count, 0)
    return Release(images, (images.mean((1, 2, 3)) > images.mean()).long(), torch.arange(count))


def begin(recipe: Recipe = RECIPE) -> Model:
    with seeded(0):
        return start(recipe, NoDefense(), None, SHAPE, 2)


def decode(attack: Memorization, state: Tensors, targets: int) -> tuple[Tensor, str]:
    public = smooth(50, 9)
    view = View(Sealed(frozenset({"model", "training", "public"}), SHAPE, SHAPE, targets, 2,
                       model=replace(begin(), state=state),
                       public=Images(public, torch.zeros(50).long(), torch.arange(50))))
    found = attack.run(view, {}, generator(1))
    check_reconstruction(found, view)
    assert found.aligned
    assert found.of == "released"
    return found.images, found.note


@given(arrays(np.float32, st.integers(1, 40), elements=FINITE), st.integers(1, 23), st.data())
def test_hidden_bits_come_back_and_nothing_else_changes(weights: np.ndarray, bits: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(weights) * bits))
    payload = data.draw(arrays(np.int32, count, elements=st.integers(0, 1)))
    before = torch.from_numpy(weights.copy())
    after = hide(before, torch.from_numpy(payload), bits)
    assert torch.equal(before, torch.from_numpy(weights))
    np.testing.assert_array_equal(reveal(after, count, bits).numpy(), payload)
    assert torch.isfinite(after).all()
    changed = weights.view(np.uint32) ^ after.numpy().view(np.uint32)
    assert (changed >> bits == 0).all()
    full, rest = divmod(count, bits)
    assert (changed[full + 1:] == 0).all()
    if full < len(weights):
        assert changed[full] & ((1 << (bits - rest)) - 1) == 0


def test_bits_by_hand() -> None:
    images = torch.tensor([0.0, 1.0, 165 / 255]).reshape(1, 1, 1, 3)
    assert to_bits(images)[0].tolist() == [0] * 8 + [1] * 8 + [1, 0, 1, 0, 0, 1, 0, 1]
    assert torch.equal(from_bits(to_bits(images), (1, 1, 3)), images)
    assert to_bits(images, 4)[0, 8:].tolist() == [1, 0, 1, 0]


@given(arrays(np.uint8, (2, 5)), st.integers(1, 8))
def test_images_come_back_as_far_as_the_depth_goes(pixels: np.ndarray, depth: int) -> None:
    images = torch.from_numpy(pixels).float().reshape(2, 1, 1, 5) / 255
    found = from_bits(to_bits(images, depth), (1, 1, 5), depth)
    assert (found - images).abs().max() <= (2 ** (8 - depth) - 1) / 2 / 255 + 1e-6


def test_capacity() -> None:
    assert Memorization(bits=16).capacity((3, 32, 32), 272_474) == 177  # ResNet-20, see the facts: about 175
    for attack, exact in ((Memorization(bits=3), -(-5 * 8 * VALUES // 3)), (Memorization("sign"), 5 * DEPTH * VALUES),
                          (Memorization("correlated"), 5 * VALUES)):
        assert attack.capacity(SHAPE, exact) == 5
        assert attack.capacity(SHAPE, exact - 1) == 4


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 23))
def test_lsb_is_bit_exact(bits: int) -> None:
    attack, mine, model = Memorization(bits=bits), release(60), begin()
    assert model.state is not None
    kept = {name: value.clone() for name, value in model.state.items()}
    state = attack.finish(mine, model.state, generator(0))
    assert all(torch.equal(model.state[name], value) for name, value in kept.items())
    fits = min(60, attack.capacity(SHAPE, sum(value.numel() for value in state.values())))
    found, note = decode(attack, state, 60)
    assert torch.equal(found[:fits], mine.images[:fits])
    mean = smooth(50, 9).mean(0)
    torch.testing.assert_close(found[fits:], mean.expand(60 - fits, *SHAPE))
    assert f"capacity {attack.capacity(SHAPE, sum(v.numel() for v in state.values()))} images" in note
    assert ("public mean" in note) == (fits < 60)


def test_lsb_leaves_the_predictions_and_the_statistics_alone() -> None:
    model = begin(Recipe("timm:test_resnet"))
    assert model.state is not None
    state = Memorization(bits=10).finish(release(), model.state, generator(0))
    assert list(state) == list(model.state)
    changed = {name for name, value in state.items() if not torch.equal(value, model.state[name])}
    assert changed
    assert changed <= set(carriers(state))
    assert not any("running" in name or "tracked" in name for name in carriers(state))
    images = smooth(8, 5)
    torch.testing.assert_close(replace(model, state=state).build().eval()(images), model.build().eval()(images),
                               rtol=1e-2, atol=1e-2)


def test_a_release_smaller_than_the_capacity_fits() -> None:
    state = begin().state
    assert state is not None
    mine = release(3)
    found, _ = decode(Memorization(), Memorization().finish(mine, state, generator(0)), 2)
    assert torch.equal(found, mine.images[:2])


def test_a_network_too_small_gives_the_public_mean() -> None:
    attack = Memorization("sign")
    model = begin(Recipe(kwargs={"width": 2, "grid": 1}))
    assert attack.penalty(release(), model.build(), generator(0)) is None
    assert model.state is not None
    found, note = decode(attack, model.state, 3)
    torch.testing.assert_close(found, smooth(50, 9).mean(0).expand(3, *SHAPE))
    assert "capacity 0 images; 3 beyond" in note


@pytest.mark.parametrize(("encoding", "error", "blind_share"), [("sign", 0.02, 0.15), ("correlated", 0.12, 0.5)])
def test_encodings_in_the_loss_recover_images(encoding: str, error: float, blind_share: float) -> None:
    mine, model, attack = release(), begin(), Memorization(encoding)  # type: ignore[arg-type]
    penalty = attack.penalty(mine, model.build(), generator(0))
    assert penalty is not None
    trained = train(model, mine, RECIPE, generator(0), penalty)
    assert trained.state is not None
    assert penalty(trained.build()) < penalty(model.build())
    assert attack.finish(mine, trained.state, generator(0)) is trained.state
    found, _ = decode(attack, trained.state, 6)
    mistake = (found - mine.images[:6]).square().mean().sqrt()
    blind = (smooth(50, 9).mean(0) - mine.images[:6]).square().mean().sqrt()
    assert mistake < error
    assert mistake < blind_share * blind
    net = trained.build().eval()
    assert (net(mine.images).argmax(1) == mine.labels).float().mean() > 0.9


def test_labels_spell_what_they_should() -> None:
    mine, attack = release(4), Memorization("abuse", side=8, inputs=700)
    assert attack.capacity(SHAPE, classes=10) == 700 * 3 // (8 * 8 * 3 * DEPTH) == 2
    more = attack.more(mine, 10, generator(0))
    assert more is not None
    assert len(more) == 2 * 8 * 8 * 3 * DEPTH // 3
    assert int(more.labels.max()) <= 7
    bits = [int(bit) for label in more.labels.tolist() for bit in f"{label:03b}"]
    assert bits == to_bits(resize(mine.images[:2], (3, 8, 8)), DEPTH).flatten().tolist()
    assert len(more.pixels.flatten(1).unique(dim=0)) == len(more)
    assert torch.equal(synthetic(5, SHAPE), more.pixels[:5])
    fewer = replace(attack, images=1).more(mine, 10, generator(0))
    assert fewer is not None
    assert fewer.labels.equal(more.labels[: len(more) // 2])
    assert replace(attack, inputs=100).more(mine, 10, generator(0)) is None
    assert [bits_of_label(count) for count in (2, 3, 4, 10, 16)] == [1, 1, 2, 3, 4]


@pytest.mark.parametrize("inputs", [384, 40])
def test_answers_are_read_as_images(inputs: int) -> None:
    mine, attack = release(), Memorization("abuse", side=4, inputs=inputs)
    more = attack.more(mine, 2, generator(0))
    lessons = Same(lesson_of(mine))
    assert (more is None) == (inputs == 40)
    trained, _ = teach(begin(), lessons if more is None else Extended(lessons, more), RECIPE, generator(0))
    assert trained.state is not None
    found, note = decode(attack, trained.state, 3)
    small = resize(resize(mine.images[:3], (3, 4, 4)), SHAPE)
    held = 0 if more is None else 2
    assert f"capacity {held} images; {3 - held} beyond" in note
    assert (found[:held] - small[:held]).abs().mean(dim=(1, 2, 3)).lt(0.05).all()
    torch.testing.assert_close(found[held:], smooth(50, 9).mean(0).expand(3 - held, *SHAPE))
    net = trained.build().eval()
    assert (net(mine.images).argmax(1) == mine.labels).float().mean() > 0.9


@pytest.mark.parametrize("encoding", ["lsb", "sign", "correlated"])
def test_smaller_images_and_fewer_of_them(encoding: str) -> None:
    attack = Memorization(encoding, side=8, images=2)  # type: ignore[arg-type]
    assert attack.capacity(SHAPE, 4 * DEPTH * VALUES) == 4 * replace(attack, side=0).capacity(SHAPE, 4 * DEPTH * VALUES)
    mine, model = release(), begin()
    if encoding == "lsb":
        assert model.state is not None
        state = attack.finish(mine, model.state, generator(0))
    else:
        state = train(model, mine, RECIPE, generator(0), attack.penalty(mine, model.build(), generator(0))).state
    assert state is not None
    found, note = decode(attack, state, 3)
    assert "2 of them used; 1 beyond" in note
    small = resize(resize(mine.images[:2], (3, 8, 8)), SHAPE)
    assert (found[:2] - small).square().mean().sqrt() < 0.1
    assert Memorization(encoding, side=99)._kept(SHAPE) == SHAPE  # type: ignore[arg-type]


def test_sign_penalty_by_hand() -> None:
    model = begin()
    mine = release(1)
    net = model.build()
    penalty = Memorization("sign", strength=2.0).penalty(mine, net, generator(0))
    assert penalty is not None
    largest = max(net.parameters(), key=lambda value: value.numel())
    count = VALUES * DEPTH
    assert largest.numel() >= count
    signs = to_bits(mine.images, DEPTH)[0] * 2 - 1
    wrong = [abs(w) for w, s in zip(largest.flatten()[:count].tolist(), signs.tolist(), strict=True) if w * s < 0]
    assert penalty(net).item() == pytest.approx(2 * 0.02 * sum(wrong), rel=1e-4)


@pytest.mark.parametrize("bits", [0, 24])
def test_nonsense_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        Memorization(bits=bits)
    with pytest.raises(ValueError, match="strength"):
        Memorization(strength=0)


@pytest.mark.parametrize("encoding", ["sign", "correlated"])
def test_several_weights_for_one_thing_average_noise_out(encoding: str) -> None:
    """Four weights with twice the noise: their mean is as good as one."""
    image, errors = smooth(1, 0), []
    state = dict(begin().state or {})
    names = carriers(state)
    for repeats, noise in ((1, 1.0), (1, 2.0), (4, 2.0)):
        attack = Memorization(encoding, images=1, repeats=repeats)  # type: ignore[arg-type]
        held = to_bits(image, DEPTH).flatten() * 2.0 - 1 if encoding == "sign" else \
            ((image - image.mean()) / image.std(correction=0)).flatten()
        flat = flatten(state, names).clone()
        assert attack.capacity(SHAPE, len(flat)) == len(flat) // (len(held) * repeats) >= 1
        flat[: len(held) * repeats] = held.repeat(repeats) + noise * torch.randn(len(held) * repeats,
                                                                                 generator=generator(repeats))
        found, _ = decode(attack, unflatten(flat, state, names), 1)
        errors.append(float((found[0] - image[0]).abs().mean()))
    assert errors[2] == pytest.approx(errors[0], rel=0.15)
    assert errors[1] > 1.2 * errors[2]


def test_repeats_are_trained_towards() -> None:
    """The penalty of each copy is that of the first."""
    net = nn.Linear(4 * VALUES * DEPTH, 1, bias=False)
    once, twice = (Memorization("sign", images=1, repeats=repeats).penalty(release(), net, generator(0))
                   for repeats in (1, 2))
    assert once is not None
    assert twice is not None
    with torch.no_grad():
        net.weight[:, VALUES * DEPTH: 2 * VALUES * DEPTH] = net.weight[:, : VALUES * DEPTH]
        assert float(twice(net)) == pytest.approx(2 * float(once(net)), rel=1e-5)


@pytest.mark.parametrize("params", [{"repeats": 0}, {"repeats": 2}, {"repeats": 2, "encoding": "abuse"}])
def test_repeats_are_for_what_is_drawn_towards(params: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="repeats is"):
        Memorization(**params)  # type: ignore[arg-type]
