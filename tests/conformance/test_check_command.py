"""`ppbench check`: a line a check, and an exit code that a script can use."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Run

from ppbench.cli import cli
from ppbench.errors import UserError
from ppbench.plugins import load_class
from ppbench.testing import check_attack, check_defense

PLANTED = Path(__file__).parents[1] / "planted"
ATTACKS, DEFENSES = PLANTED / "faulty_attacks.py", PLANTED / "faulty_defenses.py"


def check(*arguments: str) -> tuple[int, list[str]]:
    found = CliRunner().invoke(cli, ["check", *arguments])
    return found.exit_code, found.output.splitlines()


def test_a_good_plug_in_passes_line_by_line() -> None:
    code, lines = check("patch-shuffle,patch=8", "--quick")
    assert code == 0
    assert {"ok    contract", "ok    keys matter", "ok    owners", "ok    inverse"} <= set(lines)
    assert "skip  fresh process: left out by --quick" in lines
    assert lines[-1].endswith("checks, 0 findings")


def test_a_fault_is_one_line_and_exit_code_1() -> None:
    code, lines = check(f"{ATTACKS}:ReadsUndeclared", "--quick")
    assert code == 1
    assert [line for line in lines if line.startswith("FAIL")] == [
        "FAIL  capabilities: it reads 'public', which it does not declare: add 'public' to `requires`"]
    assert lines[-1].endswith("checks, 1 finding")


def test_what_comes_after_a_broken_contract_is_skipped() -> None:
    code, lines = check(f"{DEFENSES}:OutOfRange", "--quick")
    assert code == 1
    after = lines[[line.startswith("FAIL  contract") for line in lines].index(True) + 1: -1]
    assert len(after) > 5
    assert all("mend first what the check `contract` found" in line for line in after)


@pytest.mark.parametrize(("arguments", "words"), [
    (["nonne"], "there is no attack and no defense 'nonne'; did you mean none?"),
    (["none", "--kind", "attack"], "there is no attack 'none'"),
    (["none,level=3"], "none has no parameter 'level'"),
    (["patch-shuffle,patch=many"], "the parameter 'patch' is 'many'"),
    (["absent.py:Attack"], "does not exist"),
    (["absent.py"], "write absent.py:CLASS"),
    ([f"{ATTACKS}:Honset"], "the file has no class 'Honset'; did you mean Honest"),
    ([f"{ATTACKS}:Mean"], "is neither an attack nor a defense: derive the class from ppbench.attack.Attack"),
    ([f"{ATTACKS}:Honest", "--kind", "defense"], "is no defense: derive the class from ppbench.defense.Defense"),
    ([f"{ATTACKS}:Unwritten"], "write its method(s) run"),
    ([], "Missing argument 'SPEC'"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], words: str, command_line: Run) -> None:
    code, out, err = command_line("check", *arguments)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert not out


def test_parameters_decide() -> None:
    check_defense("patch-shuffle", patch=8, quick=True)
    with pytest.raises(UserError, match="no parameter 'size'"):
        check_defense("patch-shuffle", size=8, quick=True)


def test_a_class_or_an_instance_will_do() -> None:
    as_released = load_class("attacks", "as-released")
    check_attack(as_released, quick=True)
    check_attack(as_released(), quick=True)
    with pytest.raises(AssertionError, match="contract: the attack returned values from") as caught:
        check_attack(load_class("attacks", f"{ATTACKS}:OutOfRange"), quick=True)
    assert "\n" not in str(caught.value)


def test_a_class_that_no_other_process_could_find_is_refused() -> None:
    honest = load_class("attacks", f"{ATTACKS}:Honest")

    class Local(honest):  # type: ignore[misc,valid-type]
        pass

    with pytest.raises(UserError, match="at the top level of a file"):
        check_attack(Local, quick=True)


def test_the_command_loads_nothing_heavy_for_its_help() -> None:
    code = ("import sys; from click.testing import CliRunner; from ppbench.cli import cli\n"
            "assert CliRunner().invoke(cli, ['check', '--help']).exit_code == 0\n"
            "print([m for m in ('torch', 'numpy') if m in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
