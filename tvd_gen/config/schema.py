"""RunConfig: everything a run needs to know, as one frozen value."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from tvd_gen.config.faults import choices
from tvd_gen.config.generation import check_generation, generation_model, with_defaults
from tvd_gen.config.objective import ObjectiveConfig
from tvd_gen.config.training import TrainingSpec
from tvd_gen.data.spec import DataSpec
from tvd_gen.models.spec import ModelSpec
from tvd_gen.tasks import TASKS

STRICT = ConfigDict(frozen=True, extra="forbid")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Split = Literal["train", "validation", "test"]


def _metric_name(given: Any) -> Any:
    """{path: folder} -> the folder, written with a slash, as metrics.load_metric wants it."""
    if isinstance(given, dict) and list(given) == ["path"] and isinstance(given["path"], str):
        return given["path"] if "/" in given["path"] else f"./{given['path']}"
    return given


def _known_metric(name: str) -> str:
    from tvd_gen.metrics import group_fault

    if fault := group_fault(name):
        raise PydanticCustomError("tvd_gen", "{text}", {"text": fault})
    return name


def _known_task(name: str) -> str:
    if name not in TASKS:
        text = f"unknown task {name!r}; {choices(name, TASKS)}"
        raise PydanticCustomError("tvd_gen", "{text}", {"text": text})
    return name


Stripped = Annotated[str, Field(min_length=1)]
MetricName = Annotated[str, BeforeValidator(_metric_name), AfterValidator(_known_metric)]


class EvaluationSpec(BaseModel):
    """What is measured, and on what."""

    model_config = STRICT

    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] = ()
    """groups of METRICS, and metrics of your own as ./folder or {path: folder}; default: the
    task's"""
    split: Split = "test"
    limit: Annotated[int, Field(ge=1)] | None = None
    """evaluate only the first so many rows"""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """rows that are generated together"""
    strip: Annotated[tuple[Stripped, ...], Field(min_length=1)] | None = None
    """what is taken out of references and predictions before the text metrics see them: <newline>;
    predictions.jsonl keeps it"""


Generation = Annotated[
    dict[str, Any],
    BeforeValidator(check_generation),
    WithJsonSchema({"type": "object"}),
]


class RunConfig(BaseModel):
    """A whole run. `load_config` makes one; its fields are the sections of a config file.

    `generation` and `evaluation.metrics` are complete: what a config leaves out is the task's.
    """

    model_config = STRICT

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """the run's folder is runs/NAME; default: the config file's name"""
    task: Annotated[str, AfterValidator(_known_task), Field(json_schema_extra={"enum": [*TASKS]})]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    objective: ObjectiveConfig = ObjectiveConfig()
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    generation: Generation = {}
    evaluation: EvaluationSpec = EvaluationSpec()


def from_tree(tree: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of plain values, completed by the task's; pydantic's errors for what is wrong.

    Strictly: text is no number; but lists are tuples, and words are enums, as in JSON.
    """
    return RunConfig.model_validate_json(json.dumps(_completed(tree)), strict=True)


def _completed(tree: Mapping[str, Any]) -> dict[str, Any]:
    task = TASKS.get(str(tree.get("task")))
    generation, evaluation = tree.get("generation", {}), tree.get("evaluation", {})
    added = {}
    if task and isinstance(generation, dict):
        added["generation"] = with_defaults(generation, task.generation)
    if task and isinstance(evaluation, dict):
        added["evaluation"] = {"metrics": task.metrics, **evaluation}
    return {**tree, **added}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = RunConfig.model_json_schema()
    schema["required"] = [name for name in schema["required"] if name != "name"]
    generation = generation_model().model_json_schema()
    schema["properties"]["generation"] = {**generation, "title": "Generation"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
