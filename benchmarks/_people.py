"""Whether people are recognised: in what comes back of protected faces, and in what a victim's weights say of them."""

from _regimes import described
from _suites import rows_of
from _table import Figure, at_least

from ppbench.results import Row

SCORES = ("ssim", "identification", "verification", "leakage_verification")


def people(quick: bool) -> list[Figure]:
    """Run suites `faces` and `people` (or go on with them); left out of the quick form, as features take minutes."""
    return [] if quick else [figure for name in ("faces", "people") for row in rows_of(name) for figure in figures(row)]


def figures(row: Row) -> list[Figure]:
    """Return a row's scores; model inversion must tell more than the floor where nothing is defended."""
    name = f"faces, {described(row)}: {row['attack']}, {row['threat']}"
    found = [Figure(name, score, row[score]) for score in SCORES if score in row]
    if row["attack"] == "model-inversion" and row["defense"] == "none":
        low = "leakage_verification_low"
        found.append(at_least(name, low, row[low], 0))
    return found
