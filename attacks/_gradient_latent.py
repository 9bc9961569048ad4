"""Gradient matching in a public generator: first in its codes, then in its features, level by level.

Source: Jeon et al. 2021, "Gradient inversion with generative image prior" (arXiv 2110.14962); Fang et al. 2023, "GIFD"
(arXiv 2308.04699), whose features take the place of the former's change of the generator's weights.
"""

import math

import torch
from torch import Tensor

from ppbench.attacks._gan_nets import GeneratorNet
from ppbench.attacks._gradient_problem import Explainer, Problem
from ppbench.attacks._gradient_search import Aim, Found, at_once, better, joined
from ppbench.partial import partial

CODE_RATE, FEATURE_RATE = 0.1, 0.03  # of Adam, at the start of each level
PULL = 1e-3  # weight of a code's mean squared distance from its class's centre, in standard deviations
EARLY = 0.5  # share of the steps that are taken on codes; features share the others

Values = tuple[Tensor, ...]


def generated(problem: Problem, generator: GeneratorNet, aim: Aim, steps: int) -> Found:
    """Search for images of a generator that explain the gradients, from the centres of their labels' classes.

    Args:
        problem: its labels are classes of the generator's.
        generator: draws images like those that are sought; its weights need no gradient.
        aim: what is minimised.
        steps: of Adam, on codes and features together.
    """
    parts = torch.arange(len(problem)).split(at_once(problem))
    return joined([_of_some(problem[rows], generator, aim[rows], steps) for rows in parts])


def _of_some(problem: Problem, generator: GeneratorNet, aim: Aim, steps: int) -> Found:
    explainer, labels = problem.explainer(), problem.labels.flatten()
    noise = torch.randn(len(labels), generator.centre.embedding_dim, generator=aim.rng)
    values: Values = (generator.codes(0.1 * noise, labels),)  # images of one class must not start alike
    early = math.ceil(EARLY * steps)
    best, values = _descend(explainer, generator, aim, values, 0, range(early), steps)
    later = torch.arange(early, steps).tensor_split(generator.levels)
    for level, span in enumerate(later, 1):
        with torch.no_grad():
            values = (generator.enter(*values),) if level == 1 else generator.advance(values, level - 1)
        if len(span):
            found, values = _descend(explainer, generator, aim, values, level,
                                     range(int(span[0]), int(span[-1]) + 1), steps)
            best = better(best, found)
    return best


def _descend(explainer: Explainer, generator: GeneratorNet, aim: Aim, values: Values, level: int, span: range,
             steps: int) -> tuple[Found, Values]:
    """Take steps on codes (level 0) or features; return the best images that were met, and where the steps end."""
    labels = explainer.problem.labels
    values = tuple(value.detach().clone().requires_grad_() for value in values)
    optimiser = torch.optim.Adam(values, betas=(0.9, 0.99))
    best: Found | None = None
    for number, step in enumerate(span):
        rate = 0.5 + 0.5 * math.cos(math.pi * number / len(span))
        optimiser.param_groups[0]["lr"] = rate * (FEATURE_RATE if level else CODE_RATE)
        with torch.enable_grad():
            drawn = generator.finish(values, level) if level else generator(*values)
            images = drawn.unflatten(0, labels.shape)
            objective = aim.value(explainer(images, labels), images)
            pulled = objective.sum() + (0 if level else PULL * _far(generator, values[0], labels.flatten()))
            slopes = torch.autograd.grad(pulled, values)
        now = Found(images.detach(), objective.detach())
        best = now if best is None else better(best, now)
        for value, slope in zip(values, slopes, strict=True):
            value.grad = slope.nan_to_num(0, 0, 0)
        optimiser.step()
        partial().report(step + 1, steps, "steps in the generator")
    assert best is not None, "a level has steps"
    return best, values


def _far(generator: GeneratorNet, codes: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over codes of the mean squared distance from their class's centre, in standard deviations."""
    far: Tensor = (codes - generator.centre(labels)).square() * (-generator.spread(labels)).exp()
    return far.mean(1).sum()
