"""A job: one stage with its inputs, as plain text that any process can read; and what became of it."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Status = Literal["ok", "failed", "timeout", "killed", "bad-input", "not-applicable"]


@dataclass(frozen=True)
class Limits:
    """What a job may use.

    Attributes:
        seconds: wall-clock time, then it ends as `timeout`.
        memory_mib: memory of the job and all that it starts, without files and libraries; then it ends as `killed`.
        threads: of torch and BLAS.
    """

    seconds: float
    memory_mib: int
    threads: int


@dataclass(frozen=True)
class Job:
    """One stage to run.

    Attributes:
        stage: name in `ppbench.stages.STAGES`.
        inputs: name -> safetensors file.
        params: JSON values.
        seed: of the generator and of the global ones.
        limits: what it may use.
        output: where the value is written.
        log: where what it prints is kept (bounded).
        device: what `ppbench.device.device()` names.
        places: a component (JSON) with the paths of its files, which stored inputs do not name.
        partial: folder for what is done so far; "" = nothing is kept.
    """

    stage: str
    inputs: dict[str, str]
    params: dict[str, Any]
    seed: int
    limits: Limits
    output: str
    log: str
    device: str = "cpu"
    partial: str = ""
    places: dict[str, Any] | None = None

    def dump(self) -> str:
        """Encode as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def load(text: str) -> "Job":
        """Decode what `dump` made."""
        tree = json.loads(text)
        return Job(**{**tree, "limits": Limits(**tree["limits"])})


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: `ok`, or why there is no value.
        reason: one sentence where it is not `ok`.
        info: small facts beside the value (JSON).
        seconds: wall-clock time of the stage itself.
    """

    status: Status
    reason: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Engine(Protocol):
    """Runs jobs; `jobs` of them at once."""

    jobs: int

    async def run(self, job: Job) -> Outcome:
        """Run one job and say what became of it; never raises for what the job did."""

    def close(self) -> None:
        """End whatever still runs."""
