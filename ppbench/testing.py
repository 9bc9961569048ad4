"""Conformance for plug-in authors: one line in a test says whether a plug-in keeps its contract.

    from ppbench.testing import check_attack, check_defense

    def test_my_attack() -> None:
        check_attack("my_attack.py:MyAttack", quick=True)
        check_defense(MyDefense, block=8)
"""

from collections.abc import Iterable, Iterator
from typing import Any

from ppbench.attack import Attack
from ppbench.conformance import attack_checks, defense_checks
from ppbench.conformance.admission import admission
from ppbench.conformance.attack_bench import AttackBench
from ppbench.conformance.defense_bench import DefenseBench
from ppbench.conformance.defense_victim import fresh_process
from ppbench.conformance.findings import Outcome, examine, not_quick
from ppbench.conformance.subject import Group, Subject, resolve
from ppbench.defense import Defense


def check_attack(attack: str | type[Attack] | Attack, *, quick: bool = False, **params: Any) -> None:
    """Hold an attack to its contract.

    Args:
        attack: SPEC (`NAME,key=value` or `FILE.py:Class`), class or instance.
        quick: leave the admission gate out: one real cell on the defense `none`, in processes of its own.
        params: the attack's parameters, say to make it cheap.

    Raises:
        AssertionError: lists every finding in a sentence: what is wrong and what to do.
        UserError: there is no such attack, or it refuses its parameters.
    """
    _raise(attack_outcomes(resolve("attacks", attack, params), quick))


def check_defense(defense: str | type[Defense] | Defense, *, quick: bool = False, **params: Any) -> None:
    """Hold a defense to its contract.

    Args:
        defense: SPEC (`NAME,key=value` or `FILE.py:Class`), class or instance.
        quick: leave out the comparison with a process of its own.
        params: the defense's parameters, say to make it cheap.

    Raises:
        AssertionError: lists every finding in a sentence: what is wrong and what to do.
        UserError: there is no such defense, or it refuses its parameters.
    """
    _raise(defense_outcomes(resolve("defenses", defense, params), quick))


def outcomes(group: Group, target: object, quick: bool) -> Iterator[Outcome]:
    """Check an attack or a defense; what each check found, as it is found.

    Raises:
        UserError: there is no such plug-in, or it refuses its parameters.
    """
    subject = resolve(group, target, {})
    return attack_outcomes(subject, quick) if group == "attacks" else defense_outcomes(subject, quick)


def attack_outcomes(subject: Subject, quick: bool) -> Iterator[Outcome]:
    """Check an attack."""
    more = {"admission": not_quick if quick else admission}
    return examine({**attack_checks.CHECKS, **more}, AttackBench(subject))


def defense_outcomes(subject: Subject, quick: bool) -> Iterator[Outcome]:
    """Check a defense."""
    more = {"fresh process": not_quick if quick else fresh_process}
    return examine({**defense_checks.CHECKS, **more}, DefenseBench(subject))


def _raise(found: Iterable[Outcome]) -> None:
    findings = [f"{outcome.check}: {finding}" for outcome in found for finding in outcome.findings]
    if findings:
        raise AssertionError("\n".join(findings))
