import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradient_views import CLASSES, CONV, LONGER, MLP, QUICK, SHAPE, VIT, attacked, decibels, run, smooth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ppbench.attacks import _gradient_match
from ppbench.attacks._algebra import residual
from ppbench.attacks._closed_form import vit_inputs
from ppbench.attacks._first_layer import linear_inputs
from ppbench.attacks._gradient_match import Scene, _again
from ppbench.attacks._gradient_settings import PRESETS, Settings
from ppbench.attacks._labels import infer_labels, labels_from_bias
from ppbench.attacks._released import like_released
from ppbench.attacks.gradient_matching import GradientMatching
from ppbench.errors import NotApplicable
from ppbench.model import Normalised, Update
from ppbench.recipe import Recipe
from ppbench.ref import Ref
from ppbench.seeding import generator
from ppbench.updates import client_update, prepare
from ppbench.view import Algorithm, View


@pytest.mark.parametrize(("counts", "size"), [([0, 1, 0, 0], 1), ([2, 0, 1, 0], 3), ([0, 0, 0, 8], 8),
                                              ([2, 2, 2, 2], 8), ([1, 1, 1, 0], 3)])
def test_labels_of_uniform_predictions(counts: list[int], size: int) -> None:
    bias = torch.full((1, 4), 0.25) - torch.tensor([counts]) / size
    assert torch.bincount(labels_from_bias(bias, torch.full((4,), 0.25), size)[0], minlength=4).tolist() == counts


@given(st.lists(st.integers(0, 5), min_size=1, max_size=16), st.integers(0, 2**30))
def test_labels_survive_predictions_that_vary_a_little(labels: list[int], seed: int) -> None:
    size = len(labels)
    logits = 0.2 * torch.randn(6, generator=generator(seed)) + 0.1 / size * torch.randn(
        size, 6, generator=generator(seed + 1))
    seen = (logits.mean(0)).softmax(0)
    bias = logits.softmax(1).mean(0) - torch.bincount(torch.tensor(labels), minlength=6) / size
    assert labels_from_bias(bias[None], seen, size)[0].tolist() == sorted(labels)


def test_a_residual_is_a_share_of_squares() -> None:
    right = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]], [[0.0, 0.0]]], dtype=torch.float64)
    left = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]], [[0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(residual(left, right), torch.tensor([0.0, 0.25, 0.0]))


@given(st.integers(0, 2**30), st.floats(0, 5))
def test_one_label_is_exact_whatever_is_predicted(seed: int, sharpness: float) -> None:
    predicted = (sharpness * torch.randn(7, generator=generator(seed))).softmax(0)
    for label in range(7):
        bias = predicted - nn.functional.one_hot(torch.tensor(label), 7)
        assert labels_from_bias(bias[None], torch.full((7,), 1 / 7), 1).item() == label


def test_label_smoothing_is_heeded_where_the_last_layer_is_read() -> None:
    view, true = attacked(MLP, targets=2, batch=2, smoothing=0.6)
    leads = replace(QUICK, features=1e6, closed_form=False, steps=40)
    net, last = view.model.build(), []
    net.get_submodule("net.5").register_forward_pre_hook(lambda _, inputs: last.append(inputs[0].detach()))
    wrong = replace(view.sealed, update=replace(view.update, label_smoothing=0.0))
    for images in (true, run(leads, view).images, run(leads, View(wrong)).images):
        net(images)
    off = [min((found - true).norm() / true.norm() for true in (last[0], last[0].flip(0))) for found in last[1:]]
    assert off[0] < 0.2
    assert off[1] > 2 * off[0]


def test_errors_are_told_of_single_images_that_nobody_has_changed() -> None:
    told = [("errors told" in run(replace(QUICK, **params), attacked(CONV, targets=2, **made)[0]).note)  # type: ignore[arg-type]
            for params, made in (({}, {"batch": 1}), ({"told_errors": False}, {"batch": 1}), ({}, {"batch": 2}),
                                 ({}, {"batch": 1, "local_steps": 2}), ({}, {"batch": 1, "spoilt": 1.0}),
                                 ({"preset": "inverting-gradients"}, {"batch": 1}))]
    assert told == [True, False, False, False, False, False]


def test_labels_may_be_optimised_beside_a_closed_form_that_is_only_near() -> None:
    view, _ = attacked(VIT, targets=2, batch=1, spoilt=0.05)
    assert "for 0 of 2" in run(replace(QUICK, labels="optimised"), view).note


@pytest.mark.parametrize(("recipe", "with_bias"), [(CONV, True), (CONV, False), (VIT, True)])
def test_labels_are_inferred_from_a_network(recipe: Recipe, with_bias: bool) -> None:
    view, _ = attacked(recipe, targets=12, batch=6)
    grads = dict(view.update.values)
    name = "net.1.bias" if recipe is CONV else "net.head.bias"
    assert name in grads
    if not with_bias:
        del grads[name]
    found = infer_labels(view.model.build(), grads, 6, CLASSES, view.public.pixels)
    assert found.tolist() == [[0, 0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4]]


@pytest.mark.parametrize("share", [0.8, 0.9])
def test_labels_survive_pruning(share: float) -> None:
    """Of the bias one value is left; the weights tell the rest."""
    view, _ = attacked(CONV, "gradient-pruning", targets=12, batch=6, share=share)
    assert ((view.update.values["net.1.bias"] != 0).sum(1) == 1).all()
    found = infer_labels(view.model.build(), view.update.values, 6, CLASSES, view.public.pixels)
    assert found.tolist() == [[0, 0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4]]


def test_no_linear_layer_is_not_applicable() -> None:
    net = nn.Sequential(nn.Conv2d(3, CLASSES, 16), nn.Flatten())
    with pytest.raises(NotApplicable, match="last linear layer with 5 outputs"):
        infer_labels(net, {}, 1, CLASSES, torch.rand(2, *SHAPE))


@pytest.mark.parametrize("defense", ["none", "block-scrambling", "mixup"])
def test_batches_are_reconstructed(defense: str) -> None:
    view, true = attacked(Recipe(kwargs={"width": 12}), defense, targets=3, batch=2)
    found = run(LONGER, view)
    assert (found.of, found.aligned, found.within) == ("released", False, 2)
    assert decibels(found.images, true).min() > 24  # labels ascend within a batch here, so the order is kept
    assert "labels inferred" in found.note


@pytest.mark.parametrize(("defense", "least"), [("gradient-pruning", 18), ("gradient-noise", 18)])
def test_protected_updates_still_tell_much(defense: str, least: float) -> None:
    weak = {"gradient-pruning": {"share": 0.5}, "gradient-noise": {"clip": 1.0, "noise": 1e-3}}.get(defense, {})
    view, true = attacked(Recipe(kwargs={"width": 12}), defense, targets=2, batch=1, **weak)
    assert decibels(run(LONGER, view).images, true).min() > least


def test_an_aggregate_is_a_larger_batch() -> None:
    view, true = attacked(Recipe(kwargs={"width": 12}), "secure-aggregation", targets=5, batch=1, cohort=2)
    found = run(LONGER, view)
    assert (found.aligned, found.within) == (False, 2)
    assert decibels(found.images, true).min() > 20
    several = attacked(defense="secure-aggregation", targets=4, batch=1, local_steps=2, cohort=2)[0]
    assert run(QUICK, several).within == 2


def test_same_seed_same_images() -> None:
    view, _ = attacked()
    assert torch.equal(run(QUICK, view).images, run(QUICK, view).images)


@pytest.mark.parametrize("attack", [QUICK, replace(QUICK, restarts=3), replace(QUICK, init="noise"),
                                    replace(QUICK, init="public")])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch_size(attack: GradientMatching, batch: int) -> None:
    view, _ = attacked(targets=5, batch=batch)
    found = run(attack, view)
    assert found.aligned == (batch == 1)
    assert found.within == (None if batch == 1 else batch)


def test_labels_that_are_granted_are_used() -> None:
    view, _ = attacked(targets=5, batch=3)
    labels = torch.arange(5) % CLASSES
    granted = View(replace(view.sealed, labels=labels, granted=view.granted | {"labels"}))
    assert "labels given" in run(QUICK, granted).note


def test_local_steps_and_batch_statistics() -> None:
    view, _ = attacked(targets=4, batch=2, local_steps=4)
    net = view.model.build()
    prepare(net, False)
    scaled = {name: value / (4 * 0.02) for name, value in view.update.values.items()}
    assert infer_labels(net, scaled, 2, CLASSES, view.public.pixels).tolist() == [[0, 1], [2, 3]]
    run(QUICK, view)
    run(replace(QUICK, steps=2), attacked(Recipe("timm:test_resnet"), bn_train=True)[0])


@pytest.mark.parametrize("defense", ["none", "block-scrambling", "mixup"])
def test_a_vision_transformer_s_input_is_solved_exactly(defense: str) -> None:
    view, true = attacked(VIT, defense, targets=3, batch=1)
    found = run(QUICK, view)
    assert "closed form" in found.note
    assert "cosine" not in found.note
    assert found.aligned
    assert decibels(found.images, true).min() > 60


@pytest.mark.parametrize(("recipe", "defense"), [
    (VIT, "patch-shuffle"),  # no position embeddings
    (replace(VIT, kwargs=VIT.kwargs | {"embed_dim": 16}), "none"),  # 16 patches, width 16
    (CONV, "none"),
])
def test_without_a_closed_form_the_gradient_is_matched(recipe: Recipe, defense: str) -> None:
    view, _ = attacked(recipe, defense, targets=2, batch=1)
    net = view.model.build()
    assert vit_inputs(net, view.update.values, SHAPE) is None
    assert ", errors told, 8 steps of adam" in run(QUICK, view).note


@pytest.mark.parametrize("recipe", [VIT, MLP])
def test_what_algebra_explains_is_told_by_its_own_equations(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing passes through the network again: a large one would take longer than the algebra."""
    view, _ = attacked(recipe, targets=2, batch=1)
    monkeypatch.setattr(_gradient_match, "follows", None)
    found = run(QUICK, view)
    assert found.objective.shape == (2, 2)
    assert (found.objective[0] == 1).all()
    assert found.objective[1].max() < 1e-9


@pytest.mark.parametrize(("defense", "params", "gain"), [("gradient-pruning", {"share": 0.95}, 2.0),
                                                          ("gradient-sign", {}, 1.0)])
def test_an_update_is_matched_through_its_defense(defense: str, params: dict[str, Any], gain: float) -> None:
    view, true = attacked(defense=defense, targets=2, batch=1, **params)
    blinkered = View(replace(view.sealed, algorithm=Algorithm(Ref("defenses", "gradient-noise"), None, 0)))
    attack = LONGER
    through, plain = run(attack, view), run(attack, blinkered)
    assert "through the defense" in through.note
    assert "through the defense" not in plain.note
    assert decibels(through.images, true).mean() > decibels(plain.images, true).mean() + gain


def test_restarts_from_the_public_mean_are_drawn_like_public_images() -> None:
    view, _ = attacked(targets=64)
    scene = Scene(view, view.model.build(), like_released(view, generator(1)), generator(2))
    problem = scene.problem(view.update, 2, slice(None), torch.zeros(64, dtype=torch.int64))
    spectrum = scene.spectrum
    grey, drawn = (_again(problem, Settings(init=init), scene).images for init in ("grey", "public"))
    assert grey.shape == drawn.shape == (32, 2, *SHAPE)
    assert (grey - 0.5).std() == pytest.approx(0.1, abs=0.01)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert drawn.std(0).mean() == pytest.approx(0.7 * float(scene.like.std(0).mean()), rel=0.1)
    sizes = spectrum.coefficients(drawn - spectrum.mean).square().mean((0, 1)).sqrt()
    together = torch.stack([sizes.flatten(), spectrum.deviations.flatten()]).log()
    assert torch.corrcoef(together)[0, 1] > 0.9


@pytest.mark.parametrize("batch", [1, 2])
def test_of_a_trained_network_the_search_is_in_the_spectrum(batch: int) -> None:
    view, true = attacked(targets=4, batch=batch)
    net, some = view.model.build(), smooth(200, 9).pixels
    redness = some[:, 0].mean((1, 2)).argsort().argsort() * CLASSES // 200
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(some), redness).backward()
        optimiser.step()
    model = view.model.with_state(net)
    update = client_update(model, true, smooth(4, 1).labels, batch=batch, local_steps=1, learning_rate=1,
                           bn_train=False)
    trained = View(replace(view.sealed, model=model, update=update))
    found = {name: run(GradientMatching(steps=150 if batch == 1 else 5, rehearsals=0, spans=0, spectrum=name), trained)
             for name in ("trained", "never")}
    assert "in the spectrum" in found["trained"].note
    assert {name: "8 start(s)" in one.note for name, one in found.items()} == {"trained": True, "never": False}
    assert "in the spectrum" not in found["never"].note
    assert "in the spectrum" not in run(QUICK, view).note
    score = {name: decibels(one.images, true).mean() for name, one in found.items()}
    if batch == 1:
        assert score["trained"] > score["never"]


@pytest.mark.parametrize("batch", [1, 2])
def test_any_term_goes_with_l_bfgs(batch: int) -> None:
    """It computes in double precision; what was read from the update is single."""
    view, true = attacked(targets=2, batch=batch)
    found = run(GradientMatching(steps=60, optimiser="l-bfgs"), view)
    assert "60 steps of l-bfgs" in found.note
    if batch == 1:
        assert decibels(found.images, true).min() > 25


def test_a_noisy_gradient_is_no_closed_form() -> None:
    view, _ = attacked(VIT, targets=2, batch=1, spoilt=0.05)
    assert "closed form (positions) for 0 of 2" in run(QUICK, view).note


@pytest.mark.parametrize("defense", ["none", "patch-shuffle"])
def test_a_first_linear_layer_tells_its_input_exactly(defense: str) -> None:
    view, true = attacked(MLP, defense, targets=3, batch=1)
    found = run(QUICK, view)
    assert "closed form (first layer);" in found.note
    assert decibels(found.images, true).min() > 60
    assert "cosine+tv" in run(QUICK, attacked(MLP, targets=4, batch=2)[0]).note
    assert "cosine+tv" in run(replace(QUICK, closed_form=False), view).note


@pytest.mark.parametrize("net", [
    nn.Sequential(nn.Flatten(), nn.Linear(768, 4, bias=False), nn.Linear(4, CLASSES)),
    nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, CLASSES)),
    nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(768, CLASSES)),
])
def test_other_first_layers_tell_nothing_exactly(net: nn.Module) -> None:
    grads = {f"net.{name}": torch.ones(1, *value.shape) for name, value in net.named_parameters()}
    assert linear_inputs(Normalised(net), grads, SHAPE) is None


def test_a_first_layer_without_gradient_tells_nothing() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES))
    grads = {"net.1.weight": torch.ones(2, CLASSES, 768), "net.1.bias": torch.zeros(2, CLASSES)}
    assert linear_inputs(Normalised(net), grads, SHAPE) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_updates_that_are_not_finite_are_refused(value: float) -> None:
    view, _ = attacked()
    values = {name: torch.full_like(v, value) for name, v in view.update.values.items()}
    broken: Update = replace(view.update, values=values)
    with pytest.raises(NotApplicable, match="not finite"):
        QUICK.run(View(replace(view.sealed, update=broken)), {}, generator(0))


def test_an_update_of_zeros_gives_finite_images() -> None:
    view, _ = attacked()
    values = {name: torch.zeros_like(v) for name, v in view.update.values.items()}
    run(QUICK, View(replace(view.sealed, update=replace(view.update, values=values))))


@settings(max_examples=20)
@given(st.sampled_from([{"steps": 0}, {"restarts": -1}, {"learning_rate": 0.0}, {"tv": -1.0},
                        {"cull": 0.0}, {"preset": "best"}, {"objective": "l1"}, {"init": "black"}]))
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GradientMatching(**wrong)


def test_the_objective_is_told_from_start_to_end() -> None:
    view, _ = attacked(targets=5, batch=2)
    found = run(QUICK, view)
    assert found.objective.shape == (2, 3)
    assert (found.objective[1] < found.objective[0]).all()


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("recipe", [CONV, VIT, Recipe("timm:test_resnet")])
def test_every_preset_runs_on_every_network(preset: Any, recipe: Recipe) -> None:
    view, _ = attacked(recipe, targets=3, batch=2)
    attack = GradientMatching(preset=preset, steps=4, restarts=min(2, PRESETS[preset].restarts) or None)
    note = run(attack, view).note
    assert f"{attack.settings().objective}" in note
    assert ("labels optimised" in note) == (preset == "dlg")


def test_parameters_replace_a_preset_s_settings() -> None:
    how = GradientMatching(preset="dlg", steps=7, tv=0.5, boxed=True).settings()
    assert how == replace(PRESETS["dlg"], steps=7, tv=0.5, boxed=True)


def test_optimised_labels_are_not_asked_for_where_they_are_granted() -> None:
    view, _ = attacked(targets=2, batch=1)
    granted = View(replace(view.sealed, labels=torch.tensor([0, 1]), granted=view.granted | {"labels"}))
    assert "labels given" in run(GradientMatching(preset="dlg", steps=3), granted).note


class Attention(nn.Module):
    """A layer whose fused kernel has no second derivative."""

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_chans, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.patches(images).flatten(2).mT).mean(1))
        return logits


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope.clone()


class OnceDifferentiable(nn.Module):
    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(in_chans, 4, 4, 4), nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(_Once.apply(self.patches(images).tanh()).flatten(1))
        return logits


def test_fused_attention_is_matched_all_the_same() -> None:
    view, _ = attacked(Recipe(f"{__name__}:Attention"))
    assert run(QUICK, view).objective[1].max() < 0.5


def test_a_network_without_second_derivatives_is_told() -> None:
    view, _ = attacked(Recipe(f"{__name__}:OnceDifferentiable"))
    with pytest.raises(NotApplicable, match=r"cannot be differentiated twice.*choose a model without such layers"):
        run(QUICK, view)


@pytest.mark.parametrize("batch", [1, 2])
def test_given_labels_that_the_gradients_contradict_are_told(batch: int) -> None:
    view, _ = attacked(CONV, targets=4, batch=batch)
    for labels, note in ((torch.arange(4), False), (torch.tensor([0, 1, 3, 2]), batch == 1)):
        sealed = replace(view.sealed, granted=view.granted | {"labels"}, labels=labels)
        assert ("contradict the gradients of 2 of 4" in run(QUICK, View(sealed)).note) == note
