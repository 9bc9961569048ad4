"""`ppbench audit`: what it prints, writes and returns; its release is made of one half of the private images."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import Run


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs, so that one judge serves all audits."""
    return tmp_path_factory.mktemp("audits")


def audited(command_line: Run, npz: Path, defense: str, output: Path, private: int = 48) -> tuple[int, str, str]:
    return command_line("audit", defense, "--dataset", f"npz:{npz},private={private},public=40,test=8",
                        "--output", str(output))


@pytest.mark.slow
def test_what_is_released_as_it_is_is_copied(tiny_npz: Path, output: Path, command_line: Run) -> None:
    code, text, errors = audited(command_line, tiny_npz, "none", output)
    assert code == 1, errors
    assert "24 of 24 private images are copied by the release" in text
    (table,) = output.glob("audits/none-*.csv")
    rows = pd.read_csv(table)
    assert rows[rows.space == "pixels"].nearest.tolist() == list(range(24))
    assert rows[rows.space == "pixels"].copied.all()
    assert table.with_suffix(".png").stat().st_size > 1000
    before = table.read_bytes()
    assert audited(command_line, tiny_npz, "none", output)[0] == 1
    assert table.read_bytes() == before


@pytest.mark.slow
def test_a_release_that_shows_nothing_is_left_alone(tiny_npz: Path, output: Path, command_line: Run) -> None:
    code, text, errors = audited(command_line, tiny_npz, "constant", output)
    assert code == 0, errors
    assert "no private image is nearer to the release than held-out images are, at the level of 5 %" in text
    assert "a copy is below" in text


@pytest.mark.parametrize(("defense", "private", "said"), [
    ("none", 30, "at least 20 held-out images, but there are 15: set private higher"),
    ("nun", 48, "nun"),
])
def test_bad_input_is_one_sentence(tiny_npz: Path, tmp_path: Path, command_line: Run, defense: str, private: int,
                                   said: str) -> None:
    code, _, errors = audited(command_line, tiny_npz, defense, tmp_path, private)
    assert code == 2
    assert said in errors
    assert "Traceback" not in errors
