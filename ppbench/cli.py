"""The command line. Commands import what they need when they run, so that `list` and `--help` are quick."""

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ppbench import __version__
from ppbench.errors import UserError
from ppbench.files import resolved

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
INTERRUPTED = "interrupted; the same command goes on where this one stopped"
KINDS = ("datasets", "defenses", "attacks", "threats")


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="ppbench")
def cli() -> None:
    """Attack-versus-defense benchmark for privacy-preserving image representations."""


@cli.command()
@click.argument("suite", required=False)
@click.option("--dataset", "datasets", multiple=True, metavar="SPEC", help="NAME, npz:PATH or folder:PATH.")
@click.option("--defense", "defenses", multiple=True, metavar="SPEC", help="NAME or FILE.py:Class.")
@click.option("--attack", "attacks", multiple=True, metavar="SPEC", help="NAME, FILE.py:Class or OUTER+INNER.")
@click.option("--threat", "threats", multiple=True, metavar="SPEC", help="Threat model for every attack.")
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(min=0), help="Seed of the whole cell.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
              help="Folder of runs.")
@click.option("--name", help="The run's folder below it; default: the suite's name and a digest of the flags.")
@click.option("--engine", type=click.Choice(["processes", "inline"]), default="processes", show_default=True,
              help="One process a cell, or all in this one (for debugging).")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at once; default: the cores / [limits] threads.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N; auto = CUDA where there is one.")
@click.option("--dry-run", is_flag=True, help="Check everything, list the cells, compute nothing.")
@click.option("--fresh", is_flag=True, help="Forget the rows of an earlier run of this name.")
def run(suite: str | None, datasets: tuple[str, ...], defenses: tuple[str, ...], attacks: tuple[str, ...],
        threats: tuple[str, ...], seeds: tuple[int, ...], output: Path, name: str | None, engine: str,
        jobs: int | None, device: str, dry_run: bool, fresh: bool) -> None:
    """Run a matrix of attacks and defenses: SUITE.toml, a built-in suite's name, or none for `photos`.

    Flags replace that axis of the suite. A SPEC takes parameters: NAME,key=value,key=value. The same command finds
    the same folder again and goes on where it stopped.
    """
    from ppbench.suite import attack_table, dataset_table, defense_table, threat_table

    tables, folder = _suite_tables(suite)
    origin = suite or "the built-in suite"
    replaced = {
        "dataset": [_anchored(dataset_table(spec)) for spec in datasets],
        "defense": [_with_files(_anchored(defense_table(spec))) for spec in defenses],
        "attack": [_anchored(attack_table(spec)) for spec in attacks],
    }
    tables |= {axis: found for axis, found in replaced.items() if found}
    if seeds:
        tables["seeds"] = list(seeds)
    if threats:
        named = [threat_table(spec) for spec in threats]
        tables["threat"] = [*_tables(tables, "threat"), *(table for table in named if len(table) > 2)]
        tables["attack"] = [{**table, "threats": list(threats)} for table in _tables(tables, "attack")]
    if name is not None:
        tables["name"] = name
    elif any(replaced.values()) or seeds or threats:
        tables["name"] = f"{tables.get('name', 'run')}-{_digest(tables)}"
    _run(tables, origin, folder, output, engine, jobs, device, dry_run, fresh)


def _tables(suite: dict[str, Any], axis: str) -> list[dict[str, Any]]:
    found = suite.get(axis, [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise UserError(f"{axis!r} must be tables: write [[{axis}]]")
    return found


def _run(tables: dict[str, Any], origin: str, folder: Path, output: Path, engine: str, jobs: int | None,
         device: str, dry_run: bool, fresh: bool) -> None:
    from ppbench.suite import validate

    suite = validate(tables, origin)

    with _ending_at_once():
        if engine == "processes" and not dry_run:
            from ppbench.engine.processes import warm

            warm()

        from ppbench.device import find_device
        from ppbench.display import Terminal, print_matrix
        from ppbench.resolve import make_plan
        from ppbench.runner import RunOptions, check
        from ppbench.runner import run as run_plan

        plan = make_plan(suite, folder, find_device(device))
    if dry_run:
        check(plan)
        for cell in plan.cells:
            missing = f" (not-applicable: {cell.threat.name} lacks {', '.join(cell.missing)})" if cell.missing else ""
            click.echo(f"{cell.id} {cell}{missing}")
        click.echo(f"{len(plan.cells)} cells")
        return
    jobs = jobs or max(1, (os.cpu_count() or 1) // plan.limits.threads)
    with Terminal() as terminal:
        result = run_plan(plan, RunOptions(output, engine, jobs, fresh), terminal)
    print_matrix(result.rows, result.verdicts)
    click.echo(f"results: {result.folder / 'results.csv'}   pictures: {result.folder / 'grids'}")
    if plan.lpips.startswith("LPIPS weights"):
        click.echo(f"LPIPS was not measured: {plan.lpips}", err=True)
    failed = [row for row in result.rows if row["status"] not in ("ok", "not-applicable")]
    for row in failed:
        click.echo(f"{row['status']}: {row['defense']} | {row['attack']} | {row['threat']}: {row['reason']} "
                   f"(cells/{row['cell']}/log.txt)", err=True)
    if failed:
        sys.exit(1)


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """End at Ctrl-C without an exception, which some libraries swallow while they are loaded, and then are broken."""
    def end(number: int, frame: object) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is end:
            signal.signal(signal.SIGINT, before)


@cli.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_(kind: str | None, as_json: bool) -> None:
    """List data sets, defenses, attacks and threat models with their parameters."""
    from dataclasses import asdict

    from ppbench.describe import describe, describe_threats

    found = {each: describe_threats() if each == "threats" else describe(each)
             for each in ([kind] if kind else KINDS)}
    if as_json:
        click.echo(json.dumps({each: [asdict(one) for one in those] for each, those in found.items()}, indent=1))
        return
    for each, those in found.items():
        click.echo(click.style(each, bold=True))
        for one in those:
            click.echo(f"  {one.name:<18} {one.summary or 'broken: ' + one.problem}")
            for fact, value in one.facts.items():
                click.echo(f"  {'':<18}   {fact}: {value}")
            if one.params:
                params = ", ".join(f"{name}={default}" for name, default in one.params.items())
                click.echo(f"  {'':<18}   parameters: {params}")


@cli.command()
@click.argument("spec")
@click.option("--kind", type=click.Choice(["attack", "defense"]), help="What SPEC names; found out where possible.")
@click.option("--quick", is_flag=True, help="Leave out what needs processes of its own: the admission gate.")
def check(spec: str, kind: str | None, quick: bool) -> None:
    """Hold an attack or a defense to its contract: NAME or FILE.py:Class, with parameters as in `run`."""
    from ppbench.conformance.subject import group_of

    group = group_of(spec) if kind is None else "attacks" if kind == "attack" else "defenses"

    from ppbench.testing import outcomes

    checks = faults = 0
    for outcome in outcomes(group, spec, quick):
        if outcome.skipped:
            click.echo(f"skip  {outcome.check}: {outcome.skipped}")
            continue
        checks, faults = checks + 1, faults + len(outcome.findings)
        for finding in outcome.findings:
            click.echo(f"FAIL  {outcome.check}: {' '.join(finding.split())}")
        if not outcome.findings:
            click.echo(f"ok    {outcome.check}")
    click.echo(f"{checks} checks, {faults} {'finding' if faults == 1 else 'findings'}")
    if faults:
        sys.exit(1)


@cli.command()
@click.argument("defense")
@click.option("--dataset", default="photos", show_default=True, metavar="SPEC", help="As in `run`.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all that is random.")
@click.option("--level", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05, show_default=True,
              help="How often an honest release may be accused, at most.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
              help="Folder of runs; the audit goes to audits/ in it.")
def audit(defense: str, dataset: str, seed: int, level: float, output: Path) -> None:
    """Look for copies of private images among what DEFENSE releases.

    It releases one half of the private images; the other half shows how near to it chance comes. Ends with exit code 1
    where images are copied, or nearer on the whole than held-out ones.
    """
    from ppbench.suite import dataset_table, defense_table, validate

    tables = {"name": "audit", "seeds": [seed], "score": {"groups": ["psnr"]}, "targets": 1,
              "dataset": [_anchored(dataset_table(dataset))], "attack": [{"use": "blind"}],
              "defense": [_with_files(_anchored(defense_table(defense)))]}
    suite = validate(tables, "the audit")

    from rich.console import Console

    from ppbench.audit.release import audit_release
    from ppbench.audit.report import sentences, table, write
    from ppbench.plan import label
    from ppbench.resolve import make_plan
    from ppbench.rundir import check_writable

    check_writable(output / "audits")
    plan = make_plan(suite, Path.cwd())
    path = output / "audits" / f"{label(plan.cells[0].defense.ref).replace(':', '-')}-{_digest(tables)}"
    title = f"{defense} on {dataset}, seed {seed}"
    found = audit_release(plan, output, level)
    write(found, path, title)
    Console().print(table(found, title))
    for sentence in sentences(found):
        click.echo(sentence)
    click.echo(f"images: {path}.csv   pictures: {path}.png")
    if found.audit.near or found.audit.copied.any():
        sys.exit(1)


@cli.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--piece", type=click.IntRange(min=1), default=16, show_default=True, help="Side of a piece in pixels.")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE.png",
              help="Original, shuffled and solved picture in one; default: IMAGE's name + -jigsaw.png, here.")
@click.option("--turn", is_flag=True, help="Turn and mirror every piece its own way (8 states).")
@click.option("--negative", is_flag=True, help="Make a negative of about half of the pieces.")
@click.option("--recolour", is_flag=True, help="Exchange the colour channels of every piece its own way (6 states).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all that is random.")
@click.option("--effort", type=click.IntRange(min=1), help="Pieces that are laid at most; default: the attack's own.")
@click.option("--public", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Photos that the attack learns from first: how seams look, and which way up.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps with --public; default: the attack's own.")
def jigsaw(image: Path, output: Path | None, **settings: Any) -> None:
    """Show the attack `jigsaw` on one picture: cut IMAGE into square pieces, shuffle them, put them together again."""
    from ppbench.demo import Settings, demonstrate

    for line in demonstrate(image, output or Path(f"{image.stem}-jigsaw.png"), Settings(**settings)):
        click.echo(line)


@cli.group()
def weights() -> None:
    """Trained weights that scores need."""


@weights.command("fetch")
@click.option("--trunk", type=click.Choice(["squeeze", "alex", "vgg"]), default="squeeze", show_default=True)
@click.option("--quality", is_flag=True, help="Those of DISTS, BRISQUE, FID, KID, precision and recall instead.")
def fetch(trunk: Any, quality: bool) -> None:
    """Download LPIPS's trunk weights into torch.hub's checkpoint folder (TORCH_HOME)."""
    if quality:
        from ppbench.quality import fetch_quality

        for path in fetch_quality():
            click.echo(str(path))
        return

    from ppbench.perceptual import fetch as fetch_trunk
    from ppbench.perceptual import find_trunk

    found = find_trunk(trunk)
    click.echo(str((fetch_trunk(trunk) if isinstance(found, str) else found).path))


def _suite_tables(suite: str | None) -> tuple[dict[str, Any], Path]:
    """Read a suite by path or built-in name; paths in it are relative to its own folder."""
    from ppbench.suite import BUILT_IN, read_suite

    if suite is None or (not suite.endswith(".toml") and (BUILT_IN / f"{suite}.toml").exists()):
        return read_suite(BUILT_IN / f"{suite or 'photos'}.toml"), Path.cwd()
    path = Path(suite)
    return read_suite(path), path.resolve().parent


def _digest(tables: dict[str, Any]) -> str:
    """Tell one set of flags from another, so that each finds its own folder again."""
    return hashlib.sha256(json.dumps(tables, sort_keys=True, default=str).encode()).hexdigest()[:6]


def _anchored(table: dict[str, Any]) -> dict[str, Any]:
    """Make the path in a flag relative to the working folder, not to the suite."""
    from ppbench.plugins import is_file

    if "then" in table:
        table = {**table, "then": _anchored(table["then"])}
    kind, _, path = table["use"].partition(":")
    if is_file(table["use"]):
        file, _, attribute = table["use"].rpartition(":")
        return {**table, "use": f"{resolved(Path(), file)}:{attribute}"}
    if path:
        return {**table, "use": f"{kind}:{resolved(Path(), path)}"}
    return table


def _with_files(table: dict[str, Any]) -> dict[str, Any]:
    """Make the files that a defense's parameters name relative to the working folder as well."""
    from ppbench.plugins import load_class

    named = [key for key in table if isinstance(table[key], str) and table[key] and key != "use"]
    if not named:
        return table
    files = getattr(load_class("defenses", table["use"].partition(",")[0]), "files", ())
    return {**table, **{key: str(resolved(Path(), table[key])) for key in named if key in files}}


def main() -> None:
    """Run the command line; every error ends in one sentence and an exit code (2 input, 3 internal, 130 Ctrl-C)."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.UsageError as error:
        _complain_of_usage(error)
        sys.exit(2)
    except (UserError, click.ClickException) as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo(INTERRUPTED, err=True)
        sys.exit(130)
    except BrokenPipeError:
        os._exit(141)
    except Exception as error:
        log = Path(os.environ.get("TMPDIR", "/tmp")) / f"ppbench-{os.getpid()}.log"
        log.write_text(traceback.format_exc())
        _complain(f"internal error ({type(error).__name__}: {error}); please report {log}")
        sys.exit(3)


def _complain_of_usage(error: click.UsageError) -> None:
    if error.ctx is not None and error.message == error.ctx.get_help():
        click.echo(error.message, err=True)  # a group without a command
    else:
        page = error.ctx.command_path if error.ctx else "ppbench"
        _complain(f"{error.format_message().rstrip('.')} (see `{page} --help`)")


def _complain(message: str) -> None:
    """Print a message on stderr as one line, whatever a library put into it."""
    click.echo(f"ppbench: {' '.join(message.split())}", err=True)
