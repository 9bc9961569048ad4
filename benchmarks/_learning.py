"""Task accuracy of every victim: the suite `victims`, whole or in small."""

from _suites import Tables, rows_of
from _table import Figure, at_most

from ppbench.results import Row

SMALL = {"private": 300, "public": 50, "test": 200}
BRIEF = {"steps": 3}
PAPERS = {"patch-shuffle": "paper, ImageNet: -1.9 with RPE, -3.1 without", "mixup": "paper, ImageNet: -3.8",
          "block-scrambling": "paper, fine-tuned: 0"}


def learning(quick: bool) -> list[Figure]:
    """Run the suite (or go on with it), and return each row's accuracy and its gap to the plain victim's."""
    return [figure for row in rows_of("victims", brief if quick else None) for figure in figures(row)]


def brief(tables: Tables) -> Tables:
    """Cut a suite down to a minute's work."""
    tables["dataset"] = [table | SMALL for table in tables["dataset"]]
    tables["victim"] |= BRIEF
    for table in tables["defense"]:
        if "victim" in table:
            table["victim"] |= BRIEF
        if table["use"] == "bn-synthesis":
            table |= {"images": 100, "steps": 5, "teacher_epochs": 1}
    return tables


def figures(row: Row) -> list[Figure]:
    """Return a row's accuracy, and how far it stays behind the same network on plain images."""
    params = {"{}": ""}.get(row["defense_params"], f" {row['defense_params']}")
    name = f"{row['victim'].rpartition(':')[2]} | {row['defense']}{params} | seed {row['seed']}"
    gap = 100 * (row["task_accuracy"] - row["task_accuracy_plain"])
    found = [Figure(name, "accuracy", row["task_accuracy"])]
    if row["victim_adapted"] == "weights" and row["defense"] == "block-scrambling":
        return [*found, at_most(name, "gap to plain, points (trained apart, float32 or bf16 rounding)", abs(gap), 2.0)]
    paper = "" if row["victim_adapted"] == "no" else PAPERS.get(row["defense"], "")
    return [*found, Figure(name, "gap to plain, points" + (f" ({paper})" if paper else ""), gap)]
