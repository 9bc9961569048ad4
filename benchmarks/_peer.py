"""Run the genetic solver gaps (github.com/nemanja-m/gaps, MIT) on scrambled puzzles, in a Python that has it.

    PYTHON_WITH_GAPS benchmarks/_peer.py PUZZLES.npz OUT.npz

PUZZLES.npz holds `images` uint8 [N, H, W, 3], already shuffled, and `size`, the side of a piece. OUT.npz gets the
solved `images` and the `seconds` of each. Its own defaults: a population of 200, 20 generations.
"""

import contextlib
import os
import random
import sys
import time

import numpy as np

os.environ["MPLBACKEND"] = "Agg"  # gaps imports pyplot


def main() -> None:
    """Solve one puzzle after the other."""
    from gaps.genetic_algorithm import GeneticAlgorithm
    from gaps.image_analysis import ImageAnalysis

    with np.load(sys.argv[1], allow_pickle=False) as data:
        images, size = data["images"], int(data["size"])
    solved, seconds = np.empty_like(images), np.empty(len(images))
    for n, image in enumerate(images):
        random.seed(n)
        np.random.seed(n)  # noqa: NPY002, as gaps draws from it
        ImageAnalysis.dissimilarity_measures.clear()  # kept in the class: they would outlive a puzzle
        ImageAnalysis.best_match_table.clear()
        bgr = np.ascontiguousarray(image[..., ::-1])  # as its own command reads files
        with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink):
            start = time.perf_counter()
            search = GeneticAlgorithm(image=bgr, piece_size=size, population_size=200, generations=20)
            found = search.start_evolution(False)
            seconds[n] = time.perf_counter() - start
        solved[n] = found.to_image()[..., ::-1]
    with open(sys.argv[2], "wb") as out:
        np.savez(out, images=solved, seconds=seconds)


if __name__ == "__main__":
    main()
