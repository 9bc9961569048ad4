"""The suite: what it says is kept, and what it cannot mean is refused in one sentence."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from ppbench.errors import UserError
from ppbench.suite import (
    BUILT_IN,
    Suite,
    attack_table,
    dataset_table,
    defense_table,
    read_suite,
    threat_table,
    validate,
)

SMALLEST: dict[str, Any] = {"dataset": [{"use": "photos"}], "defense": [{"use": "none"}], "attack": [{"use": "blind"}]}


def complaint(tables: dict[str, Any]) -> str:
    """Return the one sentence that a suite is refused with."""
    with pytest.raises(UserError) as caught:
        validate(tables, "my.toml")
    text = str(caught.value)
    assert text.startswith("my.toml: ")
    assert "\n" not in text
    return text.removeprefix("my.toml: ")


def test_the_smallest_suite_has_the_defaults() -> None:
    suite = validate(SMALLEST, "x")
    assert (suite.name, suite.seeds, suite.targets, suite.schema_) == ("run", [0], 16, 1)
    assert (suite.dataset[0].private, suite.dataset[0].size) == (320, None)
    assert (suite.defense[0].key_scope, suite.defense[0].quantise) == (None, 8)
    assert (suite.attack[0].then, suite.attack[0].threats) == (None, None)
    assert (suite.limits.threads, suite.score.lpips_trunk, suite.score.distractors) == (1, "squeeze", 1000)


def test_everything_in_the_designs_example_is_understood() -> None:
    suite = validate(tomllib.loads("""
        schema = 1
        name = "cifar-ladder"
        seeds = [0, 1]
        targets = 64
        [[dataset]]
        use = "npz:cifar10.npz"
        size = 32
        private = 2000
        public = 2000
        test = 1000
        [[defense]]
        use = "block-scrambling"
        preset = "vit-cipher"
        key_scope = "global"
        quantise = 0
        [[attack]]
        use = "gradient-matching"
        then = { use = "jigsaw", restarts = 8 }
        [[attack]]
        use = "vit-inverter"
        threats = ["ciphertext-only", "kp16"]
        [[threat]]
        name = "kp16"
        base = "known-plaintext"
        pairs = 16
        [[threat]]
        name = "late"
        base = "federated-server"
        round = "last"
        bn_train = true
        learning_rate = 1
        [victim]
        model = "timm:vit_tiny_patch16_224"
        kwargs = { patch_size = 4 }
        [score]
        groups = ["ssim", "psnr"]
        [limits]
        seconds = 600
        memory_mib = 4096
        threads = 1
        """), "x")
    assert suite.defense[0].params == {"preset": "vit-cipher"}
    assert suite.dataset[0].params == {}
    assert suite.attack[0].then is not None
    assert (suite.attack[0].then.use, suite.attack[0].then.params) == ("jigsaw", {"restarts": 8})
    assert suite.threat[0].settings == {"pairs": 16}
    assert suite.threat[1].settings == {"round": "last", "bn_train": True, "learning_rate": 1}
    assert suite.victim["kwargs"] == {"patch_size": 4}


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.toml")), ids=lambda path: path.stem)
def test_built_in_suites_are_valid(path: Path) -> None:
    suite = validate(read_suite(path), path.name)
    assert isinstance(suite, Suite)
    assert suite.name == path.stem


@pytest.mark.parametrize(("change", "words"), [
    ({"targest": 4}, ["unknown key 'targest'", "did you mean targets"]),
    ({"score": {"group": []}}, ["unknown key 'score.group'", "did you mean groups?"]),
    ({"limits": {"second": 1}}, ["unknown key 'limits.second'", "did you mean seconds?"]),
    ({"threat": [{"name": "x", "base": "white-box", "pair": 3}]}, ["'threat.0.pair'", "did you mean pairs?"]),
    ({"zzz": 1}, ["unknown key 'zzz'", "known: schema, name, seeds"]),
    ({"targets": "4"}, ["'targets' is '4'", "integer"]),
    ({"targets": 0}, ["'targets' is 0", "greater than or equal to 1"]),
    ({"targets": -4}, ["'targets' is -4"]),
    ({"targets": True}, ["'targets' is True", "integer"]),
    ({"targets": 4.5}, ["'targets' is 4.5", "integer"]),
    ({"seeds": []}, ["'seeds'", "at least 1"]),
    ({"seeds": [1, 1]}, ["'seeds'", "different numbers from 0 upwards"]),
    ({"seeds": [-1]}, ["'seeds'", "different numbers from 0 upwards"]),
    ({"seeds": ["0"]}, ["'seeds.0' is '0'", "integer"]),
    ({"schema": 2}, ["'schema' is 2", "should be 1"]),
    ({"name": "a/b"}, ["'name' is 'a/b'", "use letters, digits"]),
    ({"name": "../x"}, ["'name' is '../x'"]),
    ({"name": ".hidden"}, ["'name' is '.hidden'", "letter or digit first"]),
    ({"name": ""}, ["'name' is ''"]),
    ({"name": "x\n"}, ["'name' is 'x\\n'"]),
    ({"dataset": []}, ["at least one table [[dataset]]"]),
    ({"defense": {"use": "none"}}, ["at least one table [[defense]]"]),
    ({"attack": None}, ["[[attack]]"]),
    ({"dataset": [{"size": 32}]}, ["'dataset.0.use' is missing"]),
    ({"dataset": [{"use": "photos", "size": 0}]}, ["'dataset.0.size' is 0"]),
    ({"dataset": [{"use": "photos", "private": -1}]}, ["'dataset.0.private' is -1"]),
    ({"defense": [{"use": "none", "key_scope": "mine"}]}, ["'defense.0.key_scope' is 'mine'", "'image'"]),
    ({"defense": [{"use": "none", "quantise": 7}]}, ["'defense.0.quantise' is 7", "0 or 8"]),
    ({"attack": [{"use": "blind", "threats": "white-box"}]}, ["'attack.0.threats' is 'white-box'", "list"]),
    ({"attack": [{"use": "blind", "threats": []}]}, ["'attack.0.threats'", "at least 1"]),
    ({"attack": [{"use": "blind", "then": "jigsaw"}]}, ["'attack.0.then' is 'jigsaw'"]),
    ({"attack": [{"use": "blind", "then": {}}]}, ["'attack.0.then.use' is missing"]),
    ({"threat": [{"name": "x", "base": "white-box", "pairs": "many"}]}, ["'threat.0.pairs' is 'many'"]),
    ({"threat": [{"name": "x"}]}, ["'threat.0.base' is missing"]),
    ({"threat": [{"name": "x", "base": "white-box", "learning_rate": 0}]}, ["'threat.0.learning_rate' is 0"]),
    ({"limits": {"seconds": -1}}, ["'limits.seconds' is -1", "greater than 0"]),
    ({"limits": {"seconds": float("nan")}}, ["'limits.seconds' is nan"]),
    ({"limits": {"threads": 0}}, ["'limits.threads' is 0"]),
    ({"limits": {"memory_mib": 1}}, ["'limits.memory_mib' is 1"]),
    ({"score": {"groups": ["ssmi"]}}, ["'score.groups.0' is 'ssmi'", "'ssim'"]),
    ({"score": {"distractors": -1}}, ["'score.distractors' is -1"]),
    ({"victim": 3}, ["'victim' is 3"]),
])
def test_a_wrong_key_is_named_with_what_would_do(change: dict[str, Any], words: list[str]) -> None:
    text = complaint({**SMALLEST, **change})
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("axis", ["dataset", "defense", "attack"])
def test_each_axis_needs_a_table(axis: str) -> None:
    tables = {name: table for name, table in SMALLEST.items() if name != axis}
    assert complaint(tables) == f"there must be at least one table [[{axis}]]: add it"


def test_a_missing_file_is_told_with_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist: give a TOML file, or none for the built-in .*photos"):
        read_suite(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(("content", "words"), [
    (b"targets = \n", "no valid TOML: .*line 1"), (b"a = 1\na = 2\n", "no valid TOML: .*line 2"),
    (b"\xff\xfe\x00", "cannot be read .*give a TOML file in UTF-8")])
def test_a_file_that_is_no_toml_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_suite(tmp_path / "s.toml")


def test_a_folder_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a TOML file"):
        read_suite(tmp_path)


def test_a_chain_may_be_named_in_one_word() -> None:
    one, other = validate({**SMALLEST, "attack": [
        {"use": "gradient-matching+key-recovery", "steps": 7}, {"use": "a+b", "then": {"use": "c"}}]}, "x").attack
    assert (one.use, one.params) == ("gradient-matching", {"steps": 7})
    assert one.then is not None
    assert (one.then.use, one.then.params) == ("key-recovery", {})
    assert other.use == "a+b"  # which is said to be no attack


# --- flags

def test_flags_become_the_same_tables() -> None:
    assert dataset_table("npz:a.npz,size=32,private=8") == {"use": "npz:a.npz", "size": 32, "private": 8}
    assert defense_table("mixup,patch=8,key_scope=image") == {"use": "mixup", "patch": 8, "key_scope": "image"}
    assert attack_table("jigsaw,restarts=8") == {"use": "jigsaw", "restarts": 8}
    assert attack_table("gradient-matching,tv=1e+2+jigsaw,restarts=8") == {
        "use": "gradient-matching", "tv": 100, "then": {"use": "jigsaw", "restarts": 8}}
    assert threat_table("known-plaintext,pairs=4") == {
        "name": "known-plaintext,pairs=4", "base": "known-plaintext", "pairs": 4}


@pytest.mark.parametrize(("make", "spec", "words"), [
    (attack_table, "a+b+c", "chains 3 attacks: at most OUTER\\+INNER"),
    (attack_table, "a,then=b", "write OUTER\\+INNER"),
    (attack_table, "a+b,then=c", "write OUTER\\+INNER"),
    (attack_table, "a,use=b", "'use' cannot be given"),
    (defense_table, "mixup,use=none", "'use' cannot be given"),
    (threat_table, "white-box,name=x", "'name' cannot be given"),
    (threat_table, "white-box,base=full-knowledge", "'base' cannot be given"),
])
def test_a_flag_cannot_say_two_things(make: Any, spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(spec)
