"""The stages of a cell: small functions from stored inputs to one stored value, run wherever an engine likes.

`attack`, `craft`, `queries`, `priors` and `prior` run a plug-in of the adversary's: the only data that they are given
is a view.
"""

from collections.abc import Callable
from typing import Any

import torch

from ppbench.stages.attacking import craft_model, describe_guess, list_priors, run_attack, train_prior
from ppbench.stages.learning import check_victim, make_start, make_update, make_victim, make_weights
from ppbench.stages.protecting import halve_split, make_clients, make_keys, make_release, make_split
from ppbench.stages.scoring import make_accusation, make_floor, make_judge, make_score, make_verifier
from ppbench.stages.seeing import (
    make_answers,
    make_candidates,
    make_inner_view,
    make_lineup,
    make_pairs,
    make_public_view,
    make_queries,
    make_view,
)
from ppbench.stages.values import Inputs, Made

Stage = Callable[[Inputs, dict[str, Any], torch.Generator], Made]
STAGES: dict[str, Stage] = {
    "split": make_split, "halve": halve_split, "clients": make_clients,
    "weights": make_weights, "keys": make_keys, "release": make_release,
    "start": make_start, "fits": check_victim, "victim": make_victim,
    "update": make_update, "pairs": make_pairs, "queries": make_queries, "answers": make_answers, "view": make_view,
    "lineup": make_lineup, "candidates": make_candidates,
    "public-view": make_public_view, "inner-view": make_inner_view, "priors": list_priors,
    "describe-guess": describe_guess, "prior": train_prior, "craft": craft_model,
    "attack": run_attack, "judge": make_judge, "verifier": make_verifier, "floor": make_floor,
    "score": make_score, "accusation": make_accusation,
}
