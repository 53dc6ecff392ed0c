"""A task is a value: its fields, its metrics, how it generates, and the baseline it must beat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Baseline = Literal["lead", "copy"]


@dataclass(frozen=True)
class Task:
    """What the rooms above need to know of a task; `baseline` scores the source itself as output.

    lead: the source's first sentence.  copy: the source as it is.
    """

    name: str
    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    generation: Mapping[str, Any] = field(default_factory=dict)
    baseline: Baseline | None = None

    @property
    def kind(self) -> Literal["language_modeling", "sequence_to_sequence"]:
        """How rows become tokens."""
        return "sequence_to_sequence" if self.has_source else "language_modeling"

    @property
    def has_source(self) -> bool:
        """Whether the model reads a source and writes a target, rather than continuing a text."""
        return "source" in self.fields


# top_k 0: transformers would keep the 50 likeliest tokens only, where nothing is said
_SAMPLING = {"do_sample": True, "top_p": 0.95, "top_k": 0}

TASKS = {
    task.name: task
    for task in (
        Task(
            "language_modeling",
            ("text",),
            ("perplexity", "calibration"),
            _SAMPLING,
        ),
        Task(
            "translation",
            ("source", "target"),
            ("bleu", "chrf", "perplexity", "calibration"),
            {"num_beams": 5},
            "copy",
        ),
        Task(
            "summarization",
            ("source", "target"),
            ("rouge", "perplexity", "calibration", "diversity", "repetition"),
            {"num_beams": 5, "no_repeat_ngram_size": 3},
            "lead",
        ),
        Task(
            "story_generation",
            ("source", "target"),
            ("bleu", "perplexity", "calibration", "diversity", "repetition"),
            _SAMPLING,
        ),
    )
}
