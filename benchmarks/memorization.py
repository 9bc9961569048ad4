"""What victims and synthetic sets give away of the images that they were made from.

    python benchmarks/memorization.py [--quick] [--json FILE]

The full form trains for some hours; what suite `membership` trained is kept in `runs/`. data/cifar10.npz must be there
(leaderboards/README.md).
"""

import sys
from itertools import chain

import torch
from _copies import copies
from _hidden import hidden
from _members import members
from _table import options, show


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__ or "")
    torch.set_num_threads(1)  # as a run does: more threads change float results
    found = []
    for figure in chain(hidden(asked.quick), copies(asked.quick), members(asked.quick)):
        found.append(figure)
        print(f"{figure.case}: {figure.figure} {figure.value:.4g}", file=sys.stderr, flush=True)
    show("What is remembered", found, asked.json)


if __name__ == "__main__":
    main()
