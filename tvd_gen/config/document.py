"""YAML text -> plain values, each with the place where it was written; and values -> YAML text.

Reads YAML 1.2's core schema: `1e-4` is a number, `no` is text, `010` is ten. What a config has no
use for (tags, anchors, several documents) is a fault, as are duplicate keys and nan. Nothing here
knows what a config means.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

Path = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_DIGITS = 300  # float() of more digits overflows, int() refuses 4300 of them

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BROKEN = re.compile("[\0\ud800-\udfff]")  # written as escapes; no file name or JSON can hold them
_WORDS = {"": None, "~": None} | {
    form: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for form in (word, word.capitalize(), word.upper())
}


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a line of a file (rank 0), or a --set (rank 1, 2, ...)."""

    rank: int
    line: int
    source: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.rank == 0 else f"--set {self.source}"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the path of the value, what is wrong and what to do."""

    path: Path
    what: str
    place: Place | None = None
    """None: the place of the value at `path`"""


@dataclass
class Document:
    """A tree of plain values, the place of each, and the faults met while reading."""

    value: Any
    places: dict[Path, Place]
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """The place of the value at `path`, or of the nearest section around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]

    def line_of(self, fault: Fault) -> tuple[Place, str]:
        """The place to sort by, and the fault as one line of text."""
        place = fault.place or self.place(fault.path)
        dotted = ".".join(str(part) for part in fault.path)
        # ascii(): a key may hold control characters
        shown = dotted if dotted.isprintable() else ascii(dotted)[1:-1]
        return place, f"{place}: {shown}: {fault.what}" if shown else f"{place}: {fault.what}"

    def lines(self, faults: list[Fault]) -> list[str]:
        """The faults as lines, each once, in the order of their places."""
        rows = sorted({self.line_of(fault): None for fault in faults}, key=lambda row: row[0])
        return [text.replace("\n", "\\n") for _, text in rows]  # a field's name may hold one


class _Stop(Exception):
    """The text cannot be read further; the fault is already noted."""


class _Reader:
    """Makes values of the parser's events. Recursion is bounded by MAX_DEPTH."""

    def __init__(self, events: Iterator[Event], place: Place) -> None:
        self.events = events
        self.here = place
        self.document = Document(None, {(): place})

    def fault(self, path: Path, what: str, line: int) -> None:
        self.document.faults.append(Fault(path, what, self.at(line)))

    def at(self, line: int) -> Place:
        # A --set has one place, whatever its value looks like.
        return Place(0, line, self.here.source) if self.here.rank == 0 else self.here

    def stop(self, path: Path, what: str, line: int) -> _Stop:
        self.fault(path, what, line)
        return _Stop()

    def read(self) -> Document:
        try:
            with contextlib.suppress(_Stop):
                self.document.value = self.documents()
        except YAMLError as error:
            self.fault((), *_syntax_fault(error))
        return self.document

    def documents(self) -> Any:
        value = None
        for count, event in enumerate(self.until(StreamEndEvent)):
            if count:
                raise self.stop((), "a second document; a config is one", _line(event))
            value = self.value((), next(self.events))
            next(self.events)  # the document's end
        return value

    def until(self, end: type[Event]) -> Iterator[Event]:
        for event in self.events:
            if isinstance(event, end):
                return
            if isinstance(event, DocumentStartEvent) or end is not StreamEndEvent:
                yield event

    def value(self, path: Path, event: Event) -> Any:
        line = _line(event)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            self.fault(path, "anchors and aliases are not read; write the value out", line)
        if getattr(event, "tag", None):
            self.fault(path, "tags (!...) are not read; put text in quotes instead", line)
        if isinstance(event, MappingStartEvent):
            return self.mapping(path, line)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(path, line)
        return self.scalar(path, event) if isinstance(event, ScalarEvent) else None

    def deeper(self, path: Path, line: int) -> None:
        if len(path) >= MAX_DEPTH:
            raise self.stop(path[:3], f"nested more than {MAX_DEPTH} levels deep", line)

    def mapping(self, path: Path, line: int) -> dict[str, Any]:
        self.deeper(path, line)
        found: dict[str, Any] = {}
        for event in self.until(MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise self.stop(path, "a key must be a word", _line(event))
            key = _joined_pairs(str(event.value))
            where = (*path, key)
            if odd := _BROKEN.search(key):
                self.fault(path, f"a key with the character {odd.group()!a}", _line(event))
                self.value(path, next(self.events))
                continue
            if key in found:
                first = self.document.places[where].line
                self.fault(where, f"given twice (also on line {first}); keep one", _line(event))
            else:
                self.document.places[where] = self.at(_line(event))
            value = self.value(where, next(self.events))
            found.setdefault(key, value)
        return found

    def sequence(self, path: Path, line: int) -> list[Any]:
        self.deeper(path, line)
        found: list[Any] = []
        for event in self.until(SequenceEndEvent):
            where = (*path, len(found))
            self.document.places[where] = self.at(_line(event))
            found.append(self.value(where, event))
        return found

    def scalar(self, path: Path, event: ScalarEvent) -> Any:
        plain = event.style is None
        text = _joined_pairs(str(event.value))
        if odd := _BROKEN.search(text):
            self.fault(path, f"the character {odd.group()!a} cannot be used", _line(event))
            return None
        if plain and _is_not_finite(text):
            self.fault(path, f"must be a finite number, got {_short(text)}", _line(event))
            return None
        return _plain_value(text) if plain else text


def _joined_pairs(text: str) -> str:
    """JSON writes a character beyond 16 bits as two escapes; joined, they are that character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _plain_value(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        # int(text, 0) refuses 010, which YAML 1.2 reads as ten
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    return float(text) if _FLOAT.fullmatch(text) else text


def _is_not_finite(text: str) -> bool:
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return len(text) > MAX_DIGITS or float(_plain_value(text)) in (float("inf"), float("-inf"))
    return bool(_NOT_FINITE.fullmatch(text))


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _syntax_fault(error: YAMLError) -> tuple[str, int]:
    if isinstance(error, ReaderError):
        return f"the character {error.character!r} cannot stand in YAML", 1
    if not isinstance(error, MarkedYAMLError):
        return f"not YAML: {' '.join(str(error).split())}", 1
    mark = error.problem_mark or error.context_mark
    problem = " ".join(str(error.problem or error.context or "unreadable").split())
    if r"'\t'" in problem:
        problem = "a tab; YAML is indented with spaces"
    return f"not YAML: {problem}", (int(mark.line) if mark else 0) + 1


def read_yaml(text: str, place: Place) -> Document:
    """The text's values and faults; `place` says where the text itself stands."""
    found = unprintable(text)
    if found is not None:
        character, line = found
        document = Document(None, {(): place})
        what = f"the character {character!a} cannot stand in a config; remove it"
        where = place if place.rank else Place(0, line, place.source)
        document.faults.append(Fault((), what, where))
        return document
    return _Reader(YAML(typ="safe", pure=True).parse(io.StringIO(text)), place).read()


def unprintable(text: str) -> tuple[str, int] | None:
    """The first character that YAML does not allow, and its line."""
    found = re.search("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    return (found.group(), text.count("\n", 0, found.start()) + 1) if found else None


def read_bytes(data: bytes, source: str) -> Document:
    """The same for a file's bytes: too many of them, or not UTF-8, is a fault."""
    place = Place(0, 1, source)
    empty = Document(None, {(): place})
    if len(data) > MAX_BYTES:
        empty.faults.append(Fault((), f"{len(data)} bytes; a config has at most {MAX_BYTES}"))
        return empty
    try:
        return read_yaml(data.decode("utf-8-sig"), place)
    except UnicodeDecodeError as error:
        what = f"the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        line = data.count(b"\n", 0, error.start) + 1
        empty.faults.append(Fault((), what, Place(0, line, source)))
        return empty


def write_yaml(value: Any) -> str:
    """YAML text that `read_yaml` reads back as `value`."""
    yaml: Any = YAML(typ="safe", pure=True)  # its attributes have no types
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = False  # escapes leave nothing to the editor that shows the file
    yaml.width = 10_000
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
