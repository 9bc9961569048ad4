"""How much of protected images comes back: by keys, by averages, by an order, and by learning, regime by regime.

    python benchmarks/inverters.py [--quick] [--json FILE]

The full form trains for some hours; what it trained is kept in `runs/`. data/cifar10.npz and data/lfw.npz must be
there (leaderboards/README.md). The quick form leaves faces out.
"""

import torch
from _keys import keys
from _ladder import ladder
from _mixup import mixtures
from _people import people
from _regimes import regimes
from _shuffle import puzzles
from _table import options, show


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__ or "")
    torch.set_num_threads(1)  # as a run does: more threads change float results
    parts = (keys, mixtures, puzzles, regimes, ladder, people)
    show("What comes back of protected images", [figure for part in parts for figure in part(asked.quick)], asked.json)


if __name__ == "__main__":
    main()
