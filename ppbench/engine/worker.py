"""What every engine does with a job: run the stage under its seed and threads, write the value, report."""

import contextlib
import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from ppbench import codec
from ppbench.device import computing_on, out_of_memory
from ppbench.engine.job import Job, Outcome
from ppbench.errors import ContractError, NotApplicable, NotGranted, UserError
from ppbench.files import write_synced
from ppbench.partial import kept_in
from ppbench.ref import Ref
from ppbench.seeding import seeded, threads
from ppbench.stages import STAGES
from ppbench.stages.values import Inputs, Made

_LONGEST = 1000  # characters of a reason


def execute(job: Job) -> Outcome:
    """Run a job in this process; the value is written to `job.output`, what fails is told in one sentence."""
    start = time.perf_counter()
    try:
        with contextlib.chdir("."), computing_on(job.device), kept_in(Path(job.partial) if job.partial else None), \
                threads(job.limits.threads), seeded(job.seed) as rng:
            made = _made(job, rng)
        _check_storable(made.info)
        if made.value is not None:
            write_synced(Path(job.output), codec.dump(made.value))
    except KeyboardInterrupt:
        raise
    except UserError as error:
        return Outcome("bad-input", _line(_text(error)))
    except NotApplicable as error:
        return Outcome("not-applicable", _line(_text(error)))
    except (ContractError, NotGranted) as error:
        _trace()
        return Outcome("failed", _line(_text(error)))
    except BaseException as error:
        _trace()
        if out_of_memory(error):
            return Outcome("failed", f"there is not enough memory ({_sentence(error)}): use fewer or smaller images, "
                           "or smaller batches")
        return Outcome("failed", _sentence(error))
    return Outcome("ok", info=made.info, seconds=time.perf_counter() - start)


def _made(job: Job, rng: torch.Generator) -> Made:
    """Run the stage; what a plug-in forked off and let return ends here, so that one process alone reports."""
    process = os.getpid()
    try:
        inputs = Inputs(job.inputs, Ref.from_json(job.places) if job.places else None)
        return STAGES[job.stage](inputs, job.params, rng)
    finally:
        if os.getpid() != process:
            os._exit(0)


def _check_storable(info: dict[str, Any]) -> None:
    """Hold small facts to what can be stored; those of a plug-in are the parameters of its priors.

    Raises:
        ContractError: they are no JSON values.
    """
    try:
        json.dumps(info)
    except (TypeError, ValueError) as error:
        raise ContractError(f"the parameters of a prior must be JSON values ({error})") from error


def _trace() -> None:
    """Print the traceback; a plug-in may have closed stderr."""
    with contextlib.suppress(Exception):
        traceback.print_exc()


def _sentence(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    first = next(iter(_text(error).splitlines()), "no message")
    return f"{type(error).__name__}: {_line(first)} ({Path(last.filename).name}:{last.lineno})"


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except Exception:  # its own __str__ is broken
        return ""


def _line(text: str) -> str:
    """Return a message as one printable line of bounded length."""
    return "".join(char if char.isprintable() else " " for char in text[:_LONGEST])
