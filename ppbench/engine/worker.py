"""What every engine does with a job: run the stage under its seed and threads, write the value, report."""

import time
import traceback
from pathlib import Path

from ppbench import codec
from ppbench.engine.job import Job, Outcome
from ppbench.errors import ContractError, NotApplicable, NotGranted, UserError
from ppbench.seeding import seeded, threads
from ppbench.stages import STAGES, Inputs
from ppbench.store import write_synced


def execute(job: Job) -> Outcome:
    """Run a job in this process; the value is written to `job.output`, what fails is told in one sentence."""
    start = time.perf_counter()
    try:
        with threads(job.limits.threads), seeded(job.seed) as rng:
            made = STAGES[job.stage](Inputs(job.inputs), job.params, rng)
        if made.value is not None:
            write_synced(Path(job.output), codec.dump(made.value))
    except UserError as error:
        return Outcome("bad-input", str(error))
    except NotApplicable as error:
        return Outcome("not-applicable", str(error))
    except (ContractError, NotGranted) as error:
        traceback.print_exc()
        return Outcome("failed", str(error))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Outcome("failed", _sentence(error))
    return Outcome("ok", info=made.info, seconds=time.perf_counter() - start)


def _sentence(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    first_line = str(error).strip().splitlines()[0][:300] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first_line} ({Path(last.filename).name}:{last.lineno})"
