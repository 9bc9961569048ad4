"""`python -m ppbench`."""

from ppbench.cli import main

main()
