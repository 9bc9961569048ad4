"""Rows: written whole, read back only where they are undamaged and of the same plan, and safe in a spreadsheet."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import tiny_plan
from hypothesis import given
from hypothesis import strategies as st

from ppbench.device import described
from ppbench.results import COLUMNS, PER_IMAGE_COLUMNS, base_row, read_row, to_csv, write_row

ROW: dict[str, Any] = {"cell": "abc", "status": "ok", "ssim": 0.1 + 0.2, "psnr": None, "lpips": float("nan"), "seed": 0}


def cells(row: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    """Return one row as a CSV reader sees it."""
    lines = list(csv.reader(io.StringIO(to_csv([row], columns).decode(), newline="")))
    assert len(lines) == 2
    assert lines[0] == list(columns)
    return lines[1]


@pytest.mark.parametrize(("value", "text"), [
    (None, ""), (float("nan"), ""), (0.5, "0.500000"), (1.0, "1.000000"), (-0.25, "-0.250000"), (1e-9, "0.000000"),
    (0, "0"), (-3, "-3"), (True, "true"), (False, "false"), ("", ""), ("text", "text"), ("a,b", "a,b"),
    ('say "x"', 'say "x"'), ("two\nlines", "two lines"), ("é", "é"), (math.inf, "inf")])
def test_how_a_value_is_written(value: object, text: str) -> None:
    assert cells({"x": value}, ("x", "y")) == [text, ""]


@pytest.mark.parametrize("text", ["=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "=", "-", "\t=1",
                                  "\r=1", "\n=1", " =1", "\u2028=1"])
def test_text_that_a_spreadsheet_would_run_is_made_harmless(text: str) -> None:
    assert cells({"x": text}, ("x",)) == ["'" + text.strip()]


def test_text_stays_on_its_line() -> None:
    assert cells({"x": "50 %|##  |\r100 %\r\n=HYPERLINK()\0\x1b[0m"}, ("x",)) == ["50 %|##  | 100 %  =HYPERLINK()  [0m"]
    assert len(to_csv([{"x": "a\nb\rc\u2028d\x85e"}], ("x",)).decode().splitlines()) == 2


def test_a_file_name_that_is_no_unicode_can_be_written() -> None:
    assert cells({"x": "npz:\udcff.npz"}, ("x",)) == ["npz: .npz"]


@given(st.text(st.characters()))
def test_no_text_begins_like_a_formula_or_leaves_its_line(text: str) -> None:
    written, last = cells({"x": text, "y": "end"}, ("x", "y"))
    assert not written.startswith(("=", "+", "-", "@", "\t", "\r", "\n", " "))
    assert last == "end"
    assert len(to_csv([{"x": text}], ("x", "y")).decode().splitlines()) == 2


def test_columns_are_in_their_order_and_the_rest_is_left_out() -> None:
    text = to_csv([{**ROW, "no such column": 1}, {"cell": "def"}]).decode()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    frame = pd.read_csv(io.StringIO(text))
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame.cell) == ["abc", "def"]
    assert frame.ssim[0] == 0.3
    assert math.isnan(frame.lpips[0])


def test_no_rows_are_a_header() -> None:
    assert to_csv([]).decode() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("columns", [COLUMNS, PER_IMAGE_COLUMNS])
def test_column_names_are_unique(columns: tuple[str, ...]) -> None:
    assert len(set(columns)) == len(columns)


def test_a_row_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "cells" / "abc" / "row.json"
    write_row(path, "f", ROW, {"reconstruction": "d1"}, {"attack": 1.5})
    found = read_row(path, "f")
    assert found is not None
    assert found["row"].pop("lpips") != 0
    assert found["row"] == {name: value for name, value in ROW.items() if name != "lpips"}
    assert (found["artefacts"], found["timings"]) == ({"reconstruction": "d1"}, {"attack": 1.5})
    assert [file.name for file in path.parent.iterdir()] == ["row.json"]


def test_a_row_of_another_plan_is_none(tmp_path: Path) -> None:
    write_row(tmp_path / "row.json", "f", ROW, {}, {})
    assert read_row(tmp_path / "row.json", "g") is None
    assert read_row(tmp_path / "absent.json", "f") is None


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_a_flipped_bit_anywhere_is_none(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "row.json"
    write_row(path, "f", {"cell": "abc", "ssim": 0.25}, {}, {})
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1:])
        assert read_row(path, "f") is None, i


def test_a_row_cut_anywhere_is_none(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    write_row(path, "f", {"cell": "abc", "ssim": 0.25}, {}, {})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_row(path, "f") is None, length


@pytest.mark.parametrize("content", ["[]", "[1]", "3", '"digest"', "null", "{}", '{"digest": 1}',
                                     '{"digest": "x", "fingerprint": "f"}'])
def test_any_other_json_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "row.json").write_text(content)
    assert read_row(tmp_path / "row.json", "f") is None


def test_an_edited_figure_is_none(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    write_row(path, "f", {"cell": "abc", "ssim": 0.25}, {}, {})
    content = json.loads(path.read_text())
    content["row"]["ssim"] = 0.75
    path.write_text(json.dumps(content, indent=1))
    assert read_row(path, "f") is None


def test_the_plan_fills_the_columns_that_it_decides(tiny_npz: Path) -> None:
    plan = tiny_plan(tiny_npz, [], [{"use": "gradient-matching", "then": {"use": "jigsaw", "restarts": 2}}],
                     defense=[{"use": "block-scrambling", "block": 8, "key_scope": "image", "quantise": 0}])
    (cell,) = plan.cells
    row = base_row(plan, cell)
    assert set(row) <= set(COLUMNS)
    assert (row["cell"], row["schema"], row["seed"], row["n_targets"]) == (cell.id, 1, 0, 4)
    assert (row["dataset"], row["defense"], row["attack"]) == ("npz:tiny.npz", "block-scrambling",
                                                               "gradient-matching+jigsaw")
    assert row["defense_params"] == '{"block":8}'
    assert row["attack_params"] == '[{},{"restarts":2}]'
    assert json.loads(row["threat_params"])["batch"] == 8
    assert (row["key_scope"], row["quantise"]) == ("image", 0)
    assert row["attack_code"].count("+") == 1
    assert len(row["defense_code"]) == 12
    assert row["version_torch"]
    assert row["device"] == described("cpu")
