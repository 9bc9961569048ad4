"""A suite: the TOML (or flags) that spells out a matrix of cells, validated; unknown keys are refused."""

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ppbench.errors import UserError
from ppbench.plugins import suggest
from ppbench.ref import parse_chain, parse_spec

BUILT_IN = Path(__file__).parent / "suites"
_AXES = ("dataset", "defense", "attack")
_UNION_TAGS = ("int", "literal['all']", "literal['first','last']")


class Table(BaseModel):
    """A table of the suite: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PlugInTable(BaseModel):
    """A table whose further keys are parameters of the plug-in it uses."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    use: str
    """Name, `npz:PATH`, `folder:PATH` or `FILE.py:Class`."""

    @property
    def params(self) -> dict[str, Any]:
        """The plug-in's parameters."""
        return dict(self.model_extra or {})


class DatasetTable(PlugInTable):
    """`[[dataset]]`: images and how they are split."""

    size: int | None = Field(None, ge=1)
    """Side in pixels; default: the data set's own."""
    private: int = Field(320, ge=1)
    """Images to be protected."""
    public: int = Field(336, ge=1)
    """The adversary's own images."""
    test: int = Field(144, ge=1)
    """Images that measure task accuracy."""
    disjoint: bool = False
    """The adversary's own images are of other classes (of faces: of other people) than private and test images."""
    canaries: int | None = Field(None, ge=2)
    """Private images that get a wrong label, where membership is attacked; default: one in twenty."""
    canary_copies: int = Field(1, ge=1)
    """How often each canary that is used stands among the private images."""


class DefenseTable(PlugInTable):
    """`[[defense]]`: a defense and how it is deployed."""

    key_scope: Literal["image", "client", "global"] | None = None
    """How far one key is reused; default: the defense's own."""
    clients: int | None = Field(None, ge=2)
    """Clients with a key each (`key_scope = "client"` only); default: as many as the victim has, or 4."""
    quantise: Literal[0, 8] = 8
    """Bits of a released pixel; 0 = float."""
    victim: dict[str, Any] = {}
    """What differs from `[victim]` for this defense."""


class ThenTable(PlugInTable):
    """`then = {...}`: the attack that takes the outer one's estimate of the release further."""


class AttackTable(PlugInTable):
    """`[[attack]]`: an attack, or a chain of two."""

    then: ThenTable | None = None
    threats: list[str] | None = Field(None, min_length=1)
    """Names of threat models; default: the attack's own."""

    @model_validator(mode="before")
    @classmethod
    def _chain(cls, table: Any) -> Any:
        """Take `use = "OUTER+INNER"` apart; the table's parameters are the outer one's."""
        chain = parse_chain(table["use"]) if isinstance(table, dict) and "+" in str(table.get("use")) else []
        if len(chain) != 2 or "then" in table or any(params for _, params in chain):
            return table
        (outer, _), (inner, _) = chain
        return {**table, "use": outer, "then": {"use": inner}}


class ThreatTable(Table):
    """`[[threat]]`: a threat model with settings of its own."""

    name: str
    base: str
    pairs: int | Literal["all"] | None = None
    queries: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    round: Literal["first", "last"] | int | None = None
    local_steps: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    bn_train: bool | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the base."""
        return self.model_dump(exclude={"name", "base"}, exclude_none=True)


class ScoreTable(Table):
    """`[score]`: what is measured."""

    groups: list[Literal["ssim", "psnr", "lpips", "identification", "recognition", "verification",
                          "pieces", "task", "quality"]] = [
        "ssim", "psnr", "lpips", "identification", "recognition", "pieces", "task"]
    lpips_trunk: Literal["squeeze", "alex", "vgg"] = "squeeze"
    distractors: int = Field(1000, ge=0)
    """Private and test images in the gallery beside the targets (or all there are)."""


class LimitsTable(Table):
    """`[limits]`: of every stage of a cell; enforced by the engine `processes`."""

    seconds: float = Field(600, gt=0)
    memory_mib: int = Field(4096, ge=64)
    threads: int = Field(1, ge=1)


class Suite(Table):
    """A matrix of cells."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seeds: list[int] = Field([0], min_length=1)
    targets: int = Field(16, ge=1)
    dataset: list[DatasetTable] = Field(min_length=1)
    defense: list[DefenseTable] = Field(min_length=1)
    attack: list[AttackTable] = Field(min_length=1)
    threat: list[ThreatTable] = []
    victim: dict[str, Any] = {}
    score: ScoreTable = ScoreTable()
    limits: LimitsTable = LimitsTable()

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or min(value) < 0:
            raise ValueError("seeds must be different numbers from 0 upwards")
        return value


def read_suite(path: Path) -> dict[str, Any]:
    """Read a TOML file into plain tables.

    Raises:
        UserError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        built_in = ", ".join(sorted(p.stem for p in BUILT_IN.glob("*.toml")))
        raise UserError(f"the suite {str(path)!r} does not exist: give a TOML file, or none for the built-in "
                        f"{built_in}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the suite {str(path)!r} cannot be read ({error}): give a TOML file in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the suite {str(path)!r} is no valid TOML: {error}") from error


def validate(tables: dict[str, Any], origin: str) -> Suite:
    """Check the tables of a suite.

    Raises:
        UserError: names the key at fault and what would do.
    """
    try:
        return Suite.model_validate(tables)
    except ValidationError as error:
        raise UserError(f"{origin}: {_sentence(error)}") from None


def dataset_table(spec: str) -> dict[str, Any]:
    """Turn `--dataset SPEC` into a table."""
    return _use(*parse_spec(spec))


defense_table = dataset_table


def attack_table(spec: str) -> dict[str, Any]:
    """Turn `--attack OUTER+INNER` into a table."""
    chain = parse_chain(spec)
    if len(chain) > 2:
        raise UserError(f"{spec!r} chains {len(chain)} attacks: at most OUTER+INNER")
    if any("then" in params for _, params in chain):
        raise UserError(f"{spec!r} gives 'then' as a parameter: write OUTER+INNER")
    table, *inner = [_use(*part) for part in chain]
    return {**table, "then": inner[0]} if inner else table


def threat_table(spec: str) -> dict[str, Any]:
    """Turn `--threat NAME,key=value` into a table named like the spec."""
    name, params = parse_spec(spec)
    return _table({"name": spec, "base": name}, params)


def _use(name: str, params: dict[str, Any]) -> dict[str, Any]:
    return _table({"use": name}, params)


def _table(table: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    for key in params:
        if key in table:
            raise UserError(f"{key!r} cannot be given as a parameter: the name in front says it")
    return table | params


def _sentence(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"] if part not in _UNION_TAGS)
    axis = len(found["loc"]) == 1 and where in _AXES
    if found["type"] == "extra_forbidden":
        table, key = _table_at(found["loc"]), str(found["loc"][-1])
        known = [field.alias or name for name, field in table.model_fields.items()]
        return f"unknown key {where!r}{suggest(key, known)}"
    if axis and found["type"] in ("missing", "too_short", "list_type"):
        return f"there must be at least one table [[{where}]]: add it"
    if found["type"] == "missing":
        return f"the key {where!r} is missing: add it"
    if found["type"] == "string_pattern_mismatch":
        return f"the key {where!r} is {found['input']!r}: use letters, digits, '.', '_', '-', a letter or digit first"
    given = "" if isinstance(found["input"], dict | list) else f" is {found['input']!r}"
    return f"the key {where!r}{given}: {found['msg']}"


def _table_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    tables: dict[str, type[BaseModel]] = {
        "dataset": DatasetTable, "defense": DefenseTable, "attack": AttackTable, "threat": ThreatTable,
        "score": ScoreTable, "limits": LimitsTable}
    return tables.get(str(location[0]), Suite) if len(location) > 1 else Suite
