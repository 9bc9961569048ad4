"""What gradients give away: closed forms, searches, crafted models.

    python benchmarks/gradients.py [--quick] [--json FILE]

data/cifar10.npz must be there (leaderboards/README.md).
"""

import torch
from _crafted import crafted
from _exact import exact
from _table import options, show


def main() -> None:
    """Measure, and print the table."""
    asked = options(__doc__ or "")
    torch.set_num_threads(1)  # as a run does: more threads change float results
    parts = (exact, crafted)
    show("What gradients give away", [figure for part in parts for figure in part(asked.quick)], asked.json)


if __name__ == "__main__":
    main()
