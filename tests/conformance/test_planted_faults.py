"""Plug-ins with planted faults: the right check names each in one sentence, and no other check complains."""

from pathlib import Path

import pytest

from ppbench.conformance.admission import admission
from ppbench.conformance.attack_bench import AttackBench
from ppbench.conformance.subject import Group, resolve
from ppbench.runner import RunOptions
from ppbench.testing import check_attack, check_defense, outcomes

PLANTED = Path(__file__).parents[1] / "planted"
ATTACKS = PLANTED / "faulty_attacks.py"
DEFENSES = PLANTED / "faulty_defenses.py"

# class -> failing check -> what its sentence must name
FAULTY_ATTACKS: dict[str, dict[str, str]] = {
    "Honest": {},
    "ReadsUndeclared": {"capabilities": "reads 'public', which it does not declare"},
    "ReadsWhatNobodyGrants": {"contract": "does not grant 'key'"},
    "GlobalTorch": {"deterministic": "torch's global generator"},
    "GlobalNumpy": {"deterministic": "numpy's global generator", "shared state": "draws from numpy's"},
    "GlobalPython": {"deterministic": "Python's global generator", "shared state": "draws from Python's"},
    "SystemEntropy": {"deterministic": "called twice with the same seed"},
    "Reseeds": {"shared state": "seeds torch's global generator"},
    "SetsThreads": {"shared state": "the number of torch threads from 1 to 3"},
    "SetsOneThread": {"shared state": "the number of torch threads from what the run decides to 1"},
    "HiddenTrainer": {"declaration": "acts in training, but `requires` does not say so"},
    "SetsDtype": {"shared state": "the default dtype from torch.float32 to torch.float64"},
    "SquareOnly": {"non-square": "[3, 32, 32]; it must be [3, 32, 24]"},
    "ColourOnly": {"grey": "it must be [1, 32, 32]"},
    "ManyTargetsOnly": {"one target": "not finite"},
    "SameSizeOnly": {"smaller release": "[3, 16, 16]; it must be [3, 32, 32]"},
    "PartnersOnly": {"no partners": "NoneType"},
    "NotFinite": {"contract": "not finite"},
    "OutOfRange": {"contract": "values from"},
    "TooFew": {"contract": "exactly 4 images"},
    "WritesView": {"view untouched": "'release' (images) in place"},
    "UnknownCapability": {"declaration": "unknown capability 'publik'; did you mean public"},
    "ComputedRequires": {"declaration": "literal frozenset"},
    "WeakThreat": {"declaration": "does not grant 'pairs'"},
    "Thawed": {"declaration": "frozen dataclass"},
    "Silent": {"declaration": "no docstring"},
    "BadDefault": {"declaration": "the default of 'steps'"},
    "GreedyPrior": {"capabilities": "reads 'public', which it does not declare"},
    "UnsteadyPrior": {"priors": "the prior 'mean': its result depends on torch's global generator"},
    "Trainer": {},
    "RandomWeights": {"training": "finish(): its result depends on torch's global generator"},
    "RoundsWeights": {"training": "from float32"},
    "BadMore": {"training": "labels that are not one an image"},
    "BadPenalty": {"training": "it must be one finite number"},
    "Crafter": {},
    "HiddenCrafter": {"declaration": 'add "gradients" and "server"'},
    "CraftsRecipe": {"crafting": "without weights"},
    "CraftsAtRandom": {"crafting": "craft(): its result depends on torch's global generator"},
    "AsksNothing": {"queries": "asks nothing"},
    "AsksAtRandom": {"queries": "other images when it is asked again"},
    "OneBatchOnly": {"single gradients": "too many values", "uneven batches": "too many values"},
}
FAULTY_DEFENSES: dict[str, dict[str, str]] = {
    "Honest": {},
    "Plain": {},
    "IgnoresKey": {"keys matter": "another key gives the same release", "owners": "released as before",
                   "inverse": "with a wrong one"},
    "OneKey": {"keys drawn": "'rows' of shape [1] when asked for 3"},
    "EqualKeys": {"keys drawn": "all the same"},
    "IgnoresOwners": {"owners": "keys.owner[i]"},
    "BadInverse": {"inverse": "undo what the key did"},
    "SpoilsWhatItInverts": {"inverse": "of the release as it is"},
    "QueryPlain": {"query": "something else than protect() releases"},
    "QueryOfOtherShape": {"query": "the release's are [3, 16, 16]"},
    "ColourOnly": {"grey": "IndexError"},
    "ManyOnly": {"single image": "AssertionError"},
    "RefusesOne": {"single image": "refuses a batch of one image"},
    "EvenOnly": {"odd-sized": "RuntimeError"},
    "CheckCrashes": {"non-square": "ValueError: not square"},
    "GlobalNumpy": {"deterministic": "numpy's global generator", "shared state": "draws from numpy's"},
    "SetsDtype": {"shared state": "the default dtype"},
    "WritesImages": {"images untouched": "the private images in place"},
    "ClaimsNoPartner": {"contract": "partnered = False"},
    "OutOfRange": {"contract": "outside [0, 1]"},
    "Double": {"contract": "float64: return float32"},
    "BadShares": {"contract": "sum to 1"},
    "WrongPieces": {"non-square": "blocks of 16 pixels", "odd-sized": "blocks of 16 pixels"},
    "HiddenKeys": {"declaration": "no key scope"},
    "UnknownScope": {"declaration": "household"},
    "LeavesTransformersBehind": {"victim": "a vision transformer"},
    "DropsUpdates": {"update": "does not give"},
    "NobodySends": {"update": "clients = 0"},
}


def failing(group: Group, spec: str) -> dict[str, str]:
    """Return what each check that fails says, which must be one sentence."""
    found = {outcome.check: outcome.findings for outcome in outcomes(group, spec, quick=True) if outcome.findings}
    assert all(len(findings) == 1 and "\n" not in findings[0] for findings in found.values()), found
    return {check: findings[0] for check, findings in found.items()}


@pytest.mark.parametrize("name", FAULTY_ATTACKS)
def test_a_faulty_attack_is_named(name: str) -> None:
    found, wanted = failing("attacks", f"{ATTACKS}:{name}"), FAULTY_ATTACKS[name]
    assert set(found) == set(wanted), found
    for check, words in wanted.items():
        assert words in found[check]


@pytest.mark.parametrize("name", FAULTY_DEFENSES)
def test_a_faulty_defense_is_named(name: str) -> None:
    found, wanted = failing("defenses", f"{DEFENSES}:{name}"), FAULTY_DEFENSES[name]
    assert set(found) == set(wanted), found
    for check, words in wanted.items():
        assert words in found[check]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [
    ("OneForAll", "returns one image for all targets"), ("Inverted", "does not beat the blind guess"),
    ("NoFloor", "its role is floor")])
def test_the_admission_gate_stays_shut(name: str, words: str, tmp_path: Path) -> None:
    bench = AttackBench(resolve("attacks", f"{ATTACKS}:{name}", {}))
    (found,) = admission(bench, RunOptions(tmp_path, "inline"))
    assert words in found


@pytest.mark.slow
def test_the_admission_gate_opens() -> None:
    check_attack(f"{ATTACKS}:Honest")


def test_a_defense_that_rests_on_its_process_is_named() -> None:
    with pytest.raises(AssertionError, match="fresh process: a process of its own gives another release"):
        check_defense(f"{DEFENSES}:AtHomeOnly")
