"""Jobs one after another in this process: for debugging; limits are not enforced and nothing is sealed off."""

import contextlib
from pathlib import Path

from ppbench.engine.job import Job, Outcome
from ppbench.engine.worker import execute


class Inline:
    """Run every job here and now."""

    jobs = 1

    async def run(self, job: Job) -> Outcome:
        """Run one job; what it prints goes to its log."""
        with Path(job.log).open("w", encoding="utf-8", errors="replace") as log, \
                contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            return execute(job)

    def close(self) -> None:
        """Nothing runs between calls."""
