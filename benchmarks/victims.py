"""What can be learnt from protected images, how exactly keys are absorbed, and how fast victims learn.

    python benchmarks/victims.py [--quick] [--json FILE]

The full form trains every victim of `leaderboards/suites/victims.toml` on CIFAR-10 (some six hours on two cores; a
stopped one goes on in `runs/`); the quick form does the same on a few hundred images. data/cifar10.npz must be there.
"""

import torch
from _adapted import equivalence
from _curves import curves
from _federation import federation
from _learning import learning
from _loops import training_speed
from _table import options, show


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__ or "")
    torch.set_num_threads(1)  # as a run does: more threads change float results
    figures = equivalence(asked.quick) + federation(asked.quick) + training_speed(asked.quick)
    figures += learning(asked.quick) + curves(asked.quick)
    show("Victims that learn from protected images", figures, asked.json)


if __name__ == "__main__":
    main()
