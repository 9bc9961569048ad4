"""Tasks: losses and scores against closed forms and independent references."""

import pytest
import torch
from torch.nn import functional as F

from ppbench.seeding import generator
from ppbench.task import Classification, MultiLabel


def test_labels_shares_and_smoothing_agree_with_torch() -> None:
    outputs, labels = torch.randn(8, 5, generator=generator(0)), torch.arange(8) % 5
    assert Classification().loss(outputs, labels) == F.cross_entropy(outputs, labels)
    shares = F.one_hot(labels, 5).float()
    assert torch.allclose(Classification().loss(outputs, shares), F.cross_entropy(outputs, labels))
    assert Classification(0.1).loss(outputs, shares) == Classification().loss(outputs, shares)  # soft as they are
    assert Classification(0.1).loss(outputs, labels) == F.cross_entropy(outputs, labels, label_smoothing=0.1)
    short = F.one_hot(labels % 3, 3).float()  # the last classes have no share
    assert torch.allclose(Classification().loss(outputs, short), F.cross_entropy(outputs, labels % 3))


def test_at_a_high_temperature_distillation_matches_logits() -> None:
    """Hinton et al. 2015, section 2.1: the gradient tends to (z - v) / N for logits of zero mean."""
    student = torch.randn(4, 6, generator=generator(1), dtype=torch.float64)
    teacher = torch.randn(4, 6, generator=generator(2), dtype=torch.float64)
    student, teacher = (logits - logits.mean(1, keepdim=True) for logits in (student, teacher))
    student.requires_grad_()
    hot = 1e4
    Classification().loss(student, (teacher / hot).softmax(1), hot).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student - teacher).detach() / 6 / 4, atol=1e-4)


def test_accuracy_counts_the_highest_output() -> None:
    outputs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]])
    assert Classification().score(outputs, torch.tensor([0, 1, 1, 1])) == 0.75


def test_average_precision_by_hand() -> None:
    outputs = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    goals = torch.tensor([[1], [0], [1], [0]])
    assert MultiLabel().score(outputs, goals) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert MultiLabel().score(torch.zeros(4, 1), goals) == pytest.approx(0.5)  # all equal: one threshold
    two = torch.cat([goals, torch.zeros(4, 1, dtype=goals.dtype)], 1)  # a label that no image has counts for nothing
    assert MultiLabel().score(outputs.expand(4, 2), two) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_many_labels_agree_with_torch() -> None:
    outputs, goals = torch.randn(8, 3, generator=generator(0)), torch.randint(2, (8, 3), generator=generator(1))
    assert MultiLabel().loss(outputs, goals) == F.binary_cross_entropy_with_logits(outputs, goals.float())


def test_misfits_are_told() -> None:
    assert Classification().misfit(torch.zeros(1, 3), torch.tensor([2])) == ""
    assert "go up to 3" in Classification().misfit(torch.zeros(1, 3), torch.tensor([3]))
    assert "shape [3, 4]" in Classification().misfit(torch.zeros(1, 3, 4), torch.tensor([0]))
    assert MultiLabel().misfit(torch.zeros(1, 3), torch.zeros(5, 3)) == ""
    assert "one logit a label" in MultiLabel().misfit(torch.zeros(1, 3), torch.zeros(5, 4))
