"""What was computed is found again; what was damaged or half-written is never believed."""

import json
import threading
from pathlib import Path

import pytest

from ppbench.files import file_digest, write_atomic, write_synced
from ppbench.store import Store, json_digest


def publish(store: Store, content: bytes = b"tensors", key: str = "k") -> str:
    """Publish a file and return the digest of what is then in the store."""
    with store.scratch() as scratch:
        data = scratch / "out"
        data.write_bytes(content)
        return store.publish("split", key, data, {"accuracy": 0.5}, 1.25).sha256


def test_a_published_artefact_is_found_by_others(tmp_path: Path) -> None:
    digest = publish(Store(tmp_path))
    found = Store(tmp_path).find("split", "k")
    assert found is not None
    assert found.path.read_bytes() == b"tensors"
    assert (found.sha256, found.info, found.seconds) == (digest, {"accuracy": 0.5}, 1.25)
    assert digest == file_digest(found.path)
    assert found.path == tmp_path / "split" / "k" / "data.safetensors"


def test_what_was_never_published_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("split", "k") is None
    publish(store)
    assert store.find("split", "other") is None
    assert store.find("release", "k") is None


@pytest.mark.parametrize("name", ["data.safetensors", "meta.json"])
@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
def test_one_flipped_bit_anywhere_and_it_is_recomputed(tmp_path: Path, name: str, bit: int) -> None:
    publish(Store(tmp_path))
    file = tmp_path / "split" / "k" / name
    whole = file.read_bytes()
    for i in range(len(whole)):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1:])
        assert Store(tmp_path).find("split", "k") is None, i
    file.write_bytes(whole)
    assert Store(tmp_path).find("split", "k") is not None


@pytest.mark.parametrize("name", ["data.safetensors", "meta.json"])
def test_a_file_cut_anywhere_is_not_believed(tmp_path: Path, name: str) -> None:
    publish(Store(tmp_path))
    file = tmp_path / "split" / "k" / name
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert Store(tmp_path).find("split", "k") is None, length


@pytest.mark.parametrize("name", ["data.safetensors", "meta.json"])
def test_half_an_artefact_is_none(tmp_path: Path, name: str) -> None:
    publish(Store(tmp_path))
    (tmp_path / "split" / "k" / name).unlink()
    assert Store(tmp_path).find("split", "k") is None


@pytest.mark.parametrize("meta", ["[]", "3", '"x"', "null", "{}", '{"sha256": 1}', "{", "\xff"])
def test_meta_of_any_other_shape_is_damage(tmp_path: Path, meta: str) -> None:
    publish(Store(tmp_path))
    (tmp_path / "split" / "k" / "meta.json").write_text(meta, encoding="latin-1")
    assert Store(tmp_path).find("split", "k") is None


def test_a_damaged_artefact_is_replaced(tmp_path: Path) -> None:
    publish(Store(tmp_path), b"first")
    (tmp_path / "split" / "k" / "data.safetensors").write_bytes(b"frist")
    store = Store(tmp_path)
    assert store.find("split", "k") is None
    publish(store, b"second")
    found = Store(tmp_path).find("split", "k")
    assert found is not None
    assert found.path.read_bytes() == b"second"


def test_damage_after_it_was_found_is_noticed_when_it_is_published_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, b"first")
    (tmp_path / "split" / "k" / "data.safetensors").write_bytes(b"frist")
    assert publish(store, b"second") == file_digest(tmp_path / "split" / "k" / "data.safetensors")
    assert (tmp_path / "split" / "k" / "data.safetensors").read_bytes() == b"second"


def test_the_first_of_two_writers_stays_and_both_agree(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    one = publish(first, b"first")
    reader = (tmp_path / "split" / "k" / "data.safetensors").stat().st_ino
    assert publish(second, b"second") == one  # both go on with what is in the store
    assert (tmp_path / "split" / "k" / "data.safetensors").stat().st_ino == reader


def test_a_predecessor_that_another_writer_clears_away_does_no_harm(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    publish(Store(tmp_path), b"first")
    damaged = tmp_path / "split" / "k"
    (damaged / "meta.json").write_text("{")
    store, find = Store(tmp_path), Store.find

    def find_then_lose(self: Store, kind: str, key: str) -> object:
        found = find(self, kind, key)
        if damaged.exists() and found is None:
            damaged.rename(tmp_path / "taken")
        return found

    monkeypatch.setattr(Store, "find", find_then_lose)
    publish(store, b"second")
    assert (damaged / "data.safetensors").read_bytes() == b"second"


def test_many_writers_of_one_key_leave_one_whole_artefact(tmp_path: Path) -> None:
    count, digests, failures = 8, [], []
    barrier = threading.Barrier(count)

    def write(i: int) -> None:
        try:
            barrier.wait()
            for j in range(10):
                digests.append((j, publish(Store(tmp_path), bytes([i]) * 1000, f"k{j}")))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for j in range(10):
        found = Store(tmp_path).find("split", f"k{j}")
        assert found is not None
        assert {digest for k, digest in digests if k == j} == {found.sha256}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_scratch_is_removed_also_after_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyError), store.scratch() as scratch:  # noqa: PT012
        (scratch / "folder").mkdir()
        (scratch / "folder" / "file").write_bytes(b"x")
        raise KeyError
    assert not scratch.exists()
    publish(store)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_two_scratch_folders_are_different(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.scratch() as one, store.scratch() as other:
        assert one != other


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "row.json"
    write_atomic(file, b"first")
    write_atomic(file, b"second")
    assert file.read_bytes() == b"second"
    assert [path.name for path in file.parent.iterdir()] == ["row.json"]

    def fail(path: Path, content: bytes) -> None:
        path.write_bytes(content[:3])
        raise OSError("no space left on device")

    monkeypatch.setattr("ppbench.files.write_synced", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(file, b"third")
    assert file.read_bytes() == b"second"


def test_digests_are_those_of_the_content(tmp_path: Path) -> None:
    write_synced(tmp_path / "f", b"abc")
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json_digest({"a": 1, "b": [None, "x"]}) == json_digest(json.loads('{"b": [null, "x"], "a": 1}'))
    assert json_digest({"a": 1}) != json_digest({"a": 2})
