"""Rows of texts from files, shipped corpora and the hub; checked, counted, encoded and batched.

The names load on first use: `tvd_gen.data.spec` stays importable without torch and transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvd_gen.data.batches import (
        Collator,
        GenerationCollator,
        LengthSortedBatchSampler,
        MaxTokensBatchSampler,
    )
    from tvd_gen.data.corpora import shipped_corpora
    from tvd_gen.data.encoding import Kind, check_fits, encode, encode_corpus
    from tvd_gen.data.loading import Corpus, load_corpus
    from tvd_gen.data.prompts import encode_prompts, render_prompt
    from tvd_gen.data.readers import read_rows
    from tvd_gen.data.report import DataReport, SplitReport
    from tvd_gen.data.rows import Fault
    from tvd_gen.data.spec import DataSpec

__all__ = [
    "Collator",
    "Corpus",
    "DataReport",
    "DataSpec",
    "Fault",
    "GenerationCollator",
    "Kind",
    "LengthSortedBatchSampler",
    "MaxTokensBatchSampler",
    "SplitReport",
    "check_fits",
    "encode",
    "encode_corpus",
    "encode_prompts",
    "load_corpus",
    "read_rows",
    "render_prompt",
    "shipped_corpora",
]

_HOMES = {
    "batches": (
        "Collator",
        "GenerationCollator",
        "LengthSortedBatchSampler",
        "MaxTokensBatchSampler",
    ),
    "corpora": ("shipped_corpora",),
    "encoding": ("Kind", "check_fits", "encode", "encode_corpus"),
    "loading": ("Corpus", "load_corpus"),
    "prompts": ("encode_prompts", "render_prompt"),
    "readers": ("read_rows",),
    "report": ("DataReport", "SplitReport"),
    "rows": ("Fault",),
    "spec": ("DataSpec",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"tvd_gen.data.{home}"), name)
    raise AttributeError(f"module 'tvd_gen.data' has no attribute {name!r}")
