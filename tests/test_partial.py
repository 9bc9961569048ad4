"""What a long computation keeps: whole or not at all, and never believed when damaged."""

from pathlib import Path

import torch

from ppbench.partial import Partial, kept_in, partial, read_progress


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    mine = Partial(tmp_path / "new")
    assert mine.load("a") is None
    mine.save("a", {"x": torch.arange(3), "y/z": torch.ones(2, dtype=torch.float64)})
    found = Partial(tmp_path / "new").load("a")
    assert found is not None
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y/z"].dtype == torch.float64
    mine.save("a", {"x": torch.zeros(1)})
    found = mine.load("a")
    assert found is not None
    assert list(found) == ["x"]


def test_what_is_damaged_is_not_believed(tmp_path: Path) -> None:
    mine = Partial(tmp_path)
    mine.save("a", {"x": torch.arange(100)})
    file = tmp_path / "a.safetensors"
    whole = file.read_bytes()
    for broken in (b"", whole[:50], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"0" * 64 + whole[64:]):
        file.write_bytes(broken)
        assert mine.load("a") is None


def test_outside_a_stage_nothing_is_kept(tmp_path: Path) -> None:
    partial().save("a", {"x": torch.zeros(1)})
    assert partial().load("a") is None
    with kept_in(tmp_path):
        partial().save("a", {"x": torch.zeros(1)})
        assert partial().load("a") is not None
    assert partial().load("a") is None


def test_progress_is_told(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == ""
    mine = Partial(tmp_path / "later")
    mine.report(1, 5, "batches")
    mine.report(2, 5, "batches")  # too soon to be worth a file
    assert read_progress(tmp_path / "later") == "1/5 batches"
    mine.report(5, 5, "batches")
    assert read_progress(tmp_path / "later") == "5/5 batches"
    (tmp_path / "later" / "progress.json").write_text('{"done": "x"}')
    assert read_progress(tmp_path / "later") == ""
