"""What gradients give away: closed forms, crafted models, searches and their costs, beside other implementations.

    python benchmarks/gradients.py [--quick] [--json FILE] [--invertinggradients FOLDER]

data/cifar10.npz must be there (leaderboards/README.md). Other implementations are compared with where they are there:
`_peers.py` says how.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from _beside import beside
from _costs import costs
from _crafted import crafted
from _exact import exact
from _searches import searches
from _table import show


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller form, at most 2 minutes on 2 cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--invertinggradients", type=Path, metavar="FOLDER", help="of that repository")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # as a run does: more threads change float results
    found = []
    for part in (exact, crafted, searches, costs, partial(beside, repository=asked.invertinggradients)):
        for figure in part(asked.quick):
            found.append(figure)
            print(f"{figure.case}: {figure.figure} {figure.value:.4g}", file=sys.stderr, flush=True)
    show("What gradients give away", found, asked.json)


if __name__ == "__main__":
    main()
