"""The `objective` section: a name, its numbers or their schedules, and what goes with any."""

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import (
    CoreSchema,
    InitErrorDetails,
    PydanticCustomError,
    ValidationError,
)

from tvd_gen.schedules import PROBES, SCHEDULES, Schedule

if TYPE_CHECKING:
    from tvd_gen.objectives import Objective

ScheduleName = Literal["constant", "linear", "cosine", "step"]
ADDITIONS = (
    *("label_smoothing", "z_loss", "row_budget", "normalize_weights"),
    *("weights_from", "weights_every", "weights_decay"),
)
OWN_FIELDS = ("name", *ADDITIONS, "reference")


class ObjectiveConfig(BaseModel):
    """An objective by its name in OBJECTIVES, its fields as numbers or schedules, and additions.

    A schedule is a section: {schedule: linear, start: 0.0, end: 0.8}, with the fields of the
    schedule of that name in SCHEDULES.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "ce"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """eps of (1 - eps) objective + eps mean(-log p), in [0, 1)"""
    z_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """weight of each token's squared log-sum-exp; 1e-4 in PaLM"""
    row_budget: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of the head's gradient that may be left out, token by token, for speed"""
    normalize_weights: bool = False
    """divide each step's gradient by its mean weight"""
    weights_from: Literal["model", "eval", "ema", "lagged"] = "model"
    """the model that the weights of a token objective, or GOLD's, come from"""
    weights_every: Annotated[int, Field(ge=1)] = 3000
    """steps after which a lagged copy is made anew"""
    weights_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """of an ema of the weights, a step"""
    reference: str | None = None
    """a model's folder or hub id, for gold, gold_p, asft and d2gpo; default: the pretrained model
    itself"""

    @property
    def fields(self) -> dict[str, Any]:
        """The objective's own fields: numbers, and sections that describe schedules."""
        return dict(self.model_extra or {})

    def build(self) -> tuple["Objective", dict[str, Schedule], dict[str, Any]]:
        """The objective (at progress 0), the schedules of its scheduled fields, the additions."""
        schedules = _schedules(self.fields)
        additions = {name: getattr(self, name) for name in ADDITIONS}
        return self._at(0.0, schedules), schedules, additions

    def _at(self, progress: float, schedules: Mapping[str, Schedule]) -> "Objective":
        numbers = {name: schedule(progress) for name, schedule in schedules.items()}
        objective = objectives()[self.name]
        kinds = objective_fields(objective)
        given = {**self.fields, **numbers}
        fields = {key: _as(kinds[key].type, value) for key, value in given.items()}
        return objective(**fields)

    @model_validator(mode="before")
    @classmethod
    def _check(cls, given: Any) -> Any:
        if isinstance(given, dict) and (found := list(_faults(given))):
            raise ValidationError.from_exception_data(cls.__name__, found)
        return given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        number_or_schedule = {"anyOf": [{"type": "number"}, {"type": "object"}]}
        own = handler(schema)
        properties = dict(own["properties"])
        properties["name"] = {"enum": sorted(objectives()), "default": "ce"}
        properties |= dict.fromkeys(sorted(field_owners()), number_or_schedule)
        return {**own, "properties": properties, "additionalProperties": False}


def _as(kind: Any, number: float) -> Any:
    """The number as the field's type: YAML's 1 is a float where the field is one."""
    return float(number) if kind is float else number


def objectives() -> dict[str, type["Objective"]]:
    """OBJECTIVES, imported when first needed: it brings torch."""
    from tvd_gen.objectives import OBJECTIVES

    return OBJECTIVES


@functools.cache
def field_owners() -> dict[str, list[str]]:
    """field -> the objectives that have it."""
    owners: dict[str, list[str]] = {}
    for name, objective in objectives().items():
        for field in objective_fields(objective):
            owners.setdefault(field, []).append(name)
    return owners


def objective_fields(objective: type) -> dict[str, dataclasses.Field[Any]]:
    """name -> field of an objective or a schedule."""
    return {field.name: field for field in dataclasses.fields(objective)}


def _error(kind: str, loc: tuple[str, ...], given: Any, text: str = "") -> InitErrorDetails:
    # "{text}", so that braces in the text are not a template's
    custom = PydanticCustomError("tvd_gen", "{text}", {"text": text})
    return InitErrorDetails(type=custom if text else kind, loc=loc, input=given)


def _faults(given: dict[str, Any]) -> Iterator[InitErrorDetails]:
    """Everything wrong with the objective's own fields."""
    name = given.get("name", "ce")
    if not isinstance(name, str):
        return  # pydantic says so
    if name not in objectives():
        yield _error("", ("name",), name, _unknown("objective", name, objectives()))
        return
    kinds = objective_fields(objectives()[name])
    numbers = {key: value for key, value in given.items() if key not in OWN_FIELDS}
    yield from _name_faults(name, kinds, numbers)
    wrong_kind = [
        fault
        for key, value in numbers.items()
        if key in kinds
        for fault in _value_faults(key, kinds[key], value)
    ]
    yield from wrong_kind
    if not wrong_kind:
        known = {key: value for key, value in numbers.items() if key in kinds}
        yield from _range_faults(objectives()[name], known)


def _unknown(what: str, name: Any, known: Mapping[str, Any]) -> str:
    from tvd_gen.config.faults import choices

    return f"unknown {what} {name!r}; {choices(str(name), known)}"


def _name_faults(
    name: str, kinds: Mapping[str, dataclasses.Field[Any]], numbers: Mapping[str, Any]
) -> Iterator[InitErrorDetails]:
    for key in numbers:
        if key not in kinds and key in field_owners():
            owners = " and ".join(field_owners()[key])
            own = ", ".join(kinds) or "none"
            text = f"belongs to {owners}, not to {name} (its fields: {own})"
            yield _error("", (key,), numbers[key], text)
        elif key not in kinds:
            yield _error("extra_forbidden", (key,), numbers[key])
    for key, kind in kinds.items():
        if key not in numbers and kind.default is dataclasses.MISSING:
            yield _error("missing", (key,), dict(numbers))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _value_faults(key: str, kind: dataclasses.Field[Any], value: Any) -> Iterator[InitErrorDetails]:
    if isinstance(value, dict):
        yield from _schedule_faults(key, value)
    elif not _is_number(value):
        text = f"must be a number or a schedule, got {value!r}"
        yield _error("", (key,), value, text)


def _schedule_faults(key: str, given: dict[str, Any]) -> Iterator[InitErrorDetails]:
    name = given.get("schedule")
    if name is None:
        text = f"a schedule needs its name, e.g. {{schedule: linear, ...}}; {', '.join(SCHEDULES)}"
        yield _error("", (key,), given, text)
        return
    if name not in typing.get_args(ScheduleName):
        yield _error("", (key, "schedule"), name, _unknown("schedule", name, SCHEDULES))
        return
    kinds = objective_fields(SCHEDULES[name])
    found = [
        *(_field_fault(key, kinds, field, given[field]) for field in given if field != "schedule"),
        *(
            _error("missing", (key, field), given)
            for field, kind in kinds.items()
            if field not in given and kind.default is dataclasses.MISSING
        ),
    ]
    yield from (fault for fault in found if fault)
    if not any(found):
        try:
            _schedule(given)
        except ValueError as error:
            yield _error("", (key,), given, str(error))


def _field_fault(
    key: str, kinds: Mapping[str, dataclasses.Field[Any]], field: str, value: Any
) -> InitErrorDetails | None:
    if field not in kinds:
        return _error("", (key, field), value, _unknown("field", field, kinds))
    many = "tuple" in str(kinds[field].type)
    right = (
        isinstance(value, (list, tuple)) and all(map(_is_number, value))
        if many
        else _is_number(value)
    )
    wanted = "a list of numbers" if many else "a number"
    text = f"must be {wanted}, got {value!r}"
    return None if right else _error("", (key, field), value, text)


def _schedule(given: Mapping[str, Any]) -> Schedule:
    fields = {
        name: tuple(value) if isinstance(value, (list, tuple)) else value
        for name, value in given.items()
        if name != "schedule"
    }
    make: Any = SCHEDULES[given["schedule"]]
    schedule: Schedule = make(**fields)
    return schedule


def _schedules(fields: Mapping[str, Any]) -> dict[str, Schedule]:
    return {key: _schedule(value) for key, value in fields.items() if isinstance(value, dict)}


def _range_faults(
    objective: type["Objective"], numbers: dict[str, Any]
) -> Iterator[InitErrorDetails]:
    """One fault for each field whose number is out of range, a schedule's at both of its ends."""
    kinds = objective_fields(objective)
    complete = {key: 0.5 for key in kinds if kinds[key].default is dataclasses.MISSING} | numbers
    try:
        schedules = _schedules(complete)
    except ValueError:
        return  # said by _schedule_faults
    for _ in kinds:  # each turn finds one field at most, and puts a right value in its place
        found = _first_range_fault(objective, complete, schedules)
        if found is None:
            return
        key, value, text = found
        yield _error("", (key,) if key in kinds else (), value, text)
        if key not in kinds:
            return
        schedules.pop(key, None)
        default = kinds[key].default
        complete[key] = 0.5 if default is dataclasses.MISSING else default


def _first_range_fault(
    objective: type["Objective"], numbers: Mapping[str, Any], schedules: dict[str, Schedule]
) -> tuple[str, Any, str] | None:
    for progress in _probes(numbers):
        at = {key: schedule(progress) for key, schedule in schedules.items()}
        try:
            objective(**{**numbers, **at})
        except (ValueError, OverflowError) as error:
            text = str(error)
            key = next((word for word in text.split() if word in numbers), "")
            when = f" at progress {progress:g}" if key in at else ""
            return key, numbers.get(key), text.removeprefix(f"{key} ") + when
    return None


def _probes(numbers: Mapping[str, Any]) -> list[float]:
    """Points of progress: those where a schedule can be least or largest come first."""
    schedules = [value for value in numbers.values() if isinstance(value, dict)]
    edges = {edge for value in schedules for edge in value.get("boundaries", ())}
    return [0.0, *sorted(edges), *PROBES] if schedules else [0.0]
