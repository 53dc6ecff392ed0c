"""A file and --set overrides -> a checked RunConfig; and a RunConfig -> a file's text."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from tvd_gen.config.document import (
    Document,
    Fault,
    Path,
    Place,
    read_bytes,
    read_yaml,
    unprintable,
    write_yaml,
)
from tvd_gen.config.faults import to_faults
from tvd_gen.config.generation import generation_names
from tvd_gen.config.objective import OWN_FIELDS, field_owners
from tvd_gen.config.rules import check_rules
from tvd_gen.config.schema import EvaluationSpec, RunConfig, from_tree
from tvd_gen.config.shipped import find_config
from tvd_gen.config.training import argument_names
from tvd_gen.data.spec import DataSpec
from tvd_gen.errors import ConfigError
from tvd_gen.models.spec import ModelSpec, TokenizerSpec

MAX_FAULTS = 50
Overrides = Sequence[str] | Mapping[str, Any]


def load_config(name: str | FilePath, overrides: Overrides = ()) -> RunConfig:
    """Read a config file (a path, or the name of one that ships), with `key.path=value` overrides.

    ConfigError says every fault at once, one a line: `file:line: key.path: what; what to do`.
    """
    path = find_config(str(name))
    document = _read(path)
    if isinstance(document.value, dict):
        for place, dotted, value in _overrides(overrides, document):
            _put(document, place, dotted, value)
        _add_name(document, path)
    return _checked(document)


def _read(path: FilePath) -> Document:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    document = read_bytes(data, str(path))
    if document.value is None and not document.faults:
        document.faults.append(Fault((), "is empty; tvd-gen configs show prints one to start from"))
    elif not document.faults and not isinstance(document.value, dict):
        document.faults.append(Fault((), "must hold sections (task: ..., data: ...), not a list"))
    return document


def _overrides(given: Overrides, document: Document) -> Iterable[tuple[Place, list[str], Any]]:
    """The place, the path and the value of each override; faults go to the document."""
    values = given if isinstance(given, Mapping) else dict.fromkeys(given, None)
    for rank, (text, value) in enumerate(values.items(), start=1):
        key, equals, written = text.partition("=")
        if isinstance(given, Mapping):
            equals, written = "=", str(value)
        place = Place(rank, 1, _printable(f"{key}{equals}{written}"))
        dotted = key.strip().split(".")
        if not equals or not all(dotted) or unprintable(key):
            document.faults.append(Fault((), "must be key.path=value", place))
            continue
        if not isinstance(given, Mapping):
            read = read_yaml(written, place)
            document.faults += [Fault(tuple(dotted), fault.what, place) for fault in read.faults]
            value = read.value
        yield place, dotted, value


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def parse_overrides(given: Sequence[str]) -> dict[str, Any]:
    """`key.path=value` texts -> path and value, by YAML's rules; ConfigError says every fault."""
    nowhere = Document({}, {(): Place(0, 1, "")})
    found = {".".join(path): value for _, path, value in _overrides(given, nowhere)}
    if nowhere.faults:
        raise _error(nowhere)
    return found


def _put(document: Document, place: Place, dotted: list[str], value: Any) -> None:
    """Writes an override into the tree, and its place beside it."""
    tree = document.value
    for depth, key in enumerate(dotted[:-1], start=1):
        if tree.get(key) is None:
            tree[key] = {}
            document.places[tuple(dotted[:depth])] = place
        tree = tree[key]
        if not isinstance(tree, dict):
            what = f"{'.'.join(dotted[:depth])} is no section"
            document.faults.append(Fault((), what, place))
            return
    path: Path = tuple(dotted)
    inside = [known for known in document.places if known[: len(path)] == path]
    for known in inside:
        del document.places[known]
    document.places[path] = place
    tree[dotted[-1]] = value


def _add_name(document: Document, path: FilePath) -> None:
    if document.value.get("name") is None:
        document.value["name"] = path.stem


def _checked(document: Document) -> RunConfig:
    if not isinstance(document.value, dict):
        raise _error(document)
    tree = _without_nulls(document.value)
    faults: dict[Path, Fault] = {}
    config = None
    try:
        config = from_tree(tree)
    except ValidationError as error:
        found = to_faults(error.errors(include_url=False), tree, section_fields(tree))
        faults = {fault.path: fault for fault in found}
    for fault in check_rules(tree):
        faults.setdefault(fault.path, fault)
    document.faults += faults.values()
    if document.faults or config is None:
        raise _error(document)
    return config


def section_fields(tree: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Section, as a dotted path -> the fields it may hold."""
    given = tree.get("objective")
    name = given.get("name", "ce") if isinstance(given, dict) else "ce"
    own = [field for field, owners in field_owners().items() if name in owners]
    return {
        "": tuple(RunConfig.model_fields),
        "objective": (*OWN_FIELDS, *own),
        "model": _names(ModelSpec),
        "model.tokenizer": _names(TokenizerSpec),
        "data": _names(DataSpec),
        "training": argument_names(),
        "generation": generation_names(),
        "evaluation": tuple(EvaluationSpec.model_fields),
    }


def _names(spec: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(spec))


def _without_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    """A null says: not given. In free sections it may mean something, and stays."""
    return {
        key: {name: each for name, each in value.items() if each is not None}
        if isinstance(value, dict) and key != "generation"
        else copy.copy(value)
        for key, value in tree.items()
        if value is not None
    }


def _error(document: Document) -> ConfigError:
    lines = document.lines(document.faults)
    more = len(lines) - MAX_FAULTS
    return ConfigError("\n".join(lines[:MAX_FAULTS] + [f"... and {more} more"] * (more > 0)))


def dump_config(config: RunConfig) -> str:
    """YAML text with every default written out; `load_config` reads it back as an equal config."""
    return write_yaml(config.model_dump(mode="json", exclude_none=True))
