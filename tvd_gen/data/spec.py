"""What a config may say about data: a value, with no reader behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt

Positive = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class DataSpec:
    """Where rows come from and how they become tokens; one of source, files, hub is given."""

    source: str | None = None
    """a corpus that ships with the package, e.g. debian-descriptions"""
    files: Mapping[str, str | tuple[str, ...]] | None = None
    """split (train, validation, test) -> file (jsonl, csv, tsv, parquet, txt; also .gz, .bz2, .xz),
    or a pair of parallel text files (source, target), one sentence a line"""
    hub: str | None = None
    """a dataset id on the Hugging Face hub"""
    subset: str | None = None
    """the hub dataset's configuration name"""
    revision: str | None = None
    """a branch, tag or commit of the hub dataset, e.g. refs/convert/parquet"""
    splits: Mapping[str, str] = field(default_factory=dict)
    """our split -> the hub's split expression, e.g. "train[:1%]"; default: same names"""
    columns: Mapping[str, str] = field(default_factory=dict)
    """field of the task (source, target, text) -> column of the data; dots reach into objects"""
    documents: Literal["line", "paragraph"] = "line"
    """what one text of a .txt file is: a line, or the lines up to the next blank one"""
    prompt: str | None = None
    """what the model reads, with {source} in it. Default: for encoder-decoders the source, for
    decoder-only models the source and a newline. Best ends in a newline: a space would become a
    token of its own."""
    max_source_tokens: Positive = 512
    """limit on all that the model reads of a row: the prompt's own words and special tokens count,
    but it is the source's end that is cut"""
    max_target_tokens: Positive = 128
    """limit on a target, or on a text that is a row of its own, with the end token"""
    too_long: Literal["truncate", "skip", "stop"] = "truncate"
    """what to do with a row over the limits; every such row is counted. A truncated target keeps
    its end token, as in transformers."""
    block_size: Positive | None = None
    """language modelling: texts are joined by the end token and cut into blocks of this many
    tokens; without it each text is a row of its own"""
    limit: Mapping[str, Positive] = field(default_factory=dict)
    """split -> use only the first so many good rows"""
    streaming: bool = False
    """training rows are read while training, without end, shuffled in a buffer"""
    shuffle_buffer: Positive = 10_000
    """streaming: how many rows the buffer holds"""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """what to do when a row cannot be used; every such row is counted, with file and line"""
