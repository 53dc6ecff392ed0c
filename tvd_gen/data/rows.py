"""From a record to the task's texts: what a usable row is, and the words for one that is not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tvd_gen.errors import ConfigError, DataError

Record = Mapping[str, Any]
BLANK = "blank"
_MISSING = object()


@dataclass(frozen=True)
class Fault:
    """Why a record is no row. `reason` is one of few, for counting; `detail` is about this one."""

    reason: str
    detail: str = ""
    field: str | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def kind_of(value: object) -> str:
    """What a JSON or table value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return f"the number {value!r:.40}"
    kind = type(value).__name__
    return {"str": "text", "list": "a list", "dict": "an object"}.get(kind, f"of type {kind}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?` for the nearest of the known names, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def look_up(record: Record, column: str) -> Any:
    """The value of a column; dots reach into objects unless a column has that very name."""
    if column in record:
        return record[column]
    head, dot, rest = column.partition(".")
    inner = record.get(head)
    return look_up(inner, rest) if dot and isinstance(inner, Mapping) else _MISSING


def text_fault(field: str, value: Any) -> Fault | None:
    """Why a value is no text to train on, or None for one that is."""
    if not isinstance(value, str):
        return Fault("not text", f"{field} is {kind_of(value)}", field)
    if not value.strip():
        # Between the texts of a corpus are blank lines; a pair with a blank half is broken.
        return Fault(BLANK if field == "text" else f"empty {field}", field=field)
    if "\0" in value:
        return Fault("NUL character", f"in {field}", field)
    return None if value.isascii() else _unicode_fault(field, value)


def _unicode_fault(field: str, value: str) -> Fault | None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        return Fault("bad Unicode", f"{field} has half a character, U+{code:04X}", field)
    return None


class Picker:
    """Takes the task's fields out of a record: `pick(record)` is {field: text} or a Fault."""

    def __init__(self, fields: Sequence[str], columns: Mapping[str, str]):
        for name in columns:
            if name not in fields:
                raise ConfigError(
                    f"data.columns.{name}: the task has no such field; its fields are "
                    f"{', '.join(fields)}{did_you_mean(name, fields)}"
                )
        self.columns = {field: columns.get(field, field) for field in fields}

    def pick(self, record: Record) -> dict[str, str] | Fault:
        """The fields' texts exactly as they are in the record, or why it has none."""
        row = {}
        for field, column in self.columns.items():
            value = look_up(record, column)
            if value is _MISSING:
                return Fault("missing column", missing(column, record), field)
            fault = text_fault(field, value)
            if fault:
                return fault
            row[field] = value
        return row

    def check_columns(self, names: Sequence[str], place: str) -> None:
        """Raise DataError when a table has not the columns that are wanted."""
        for field, column in self.columns.items():
            if column not in names and column.partition(".")[0] not in names:
                raise DataError(f"{place}: {missing(column, names)}{self._hint(field, column)}")

    def _hint(self, field: str, column: str) -> str:
        if field != column:
            return ""
        return f"\nsay which column is the {field}: data.columns: {{{field}: ...}}"


def missing(column: str, known: Iterable[str]) -> str:
    """No such column, and which there are."""
    names = list(known)
    shown = ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
    return f"no column {column!r}; there are: {shown or 'none'}{did_you_mean(column, names)}"
