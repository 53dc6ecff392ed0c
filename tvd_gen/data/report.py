"""What was read, kept, cut and left out: every row of every file is in one of the counts."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tvd_gen.errors import DataError

SHOWN = 10
MOST_SKIPPED = 0.5


@dataclass(frozen=True)
class SourceFile:
    """A file that was read, or what stands for one; `sha256` is of its bytes on disk."""

    name: str
    sha256: str
    bytes: int | None = None


@dataclass
class SplitReport:
    """The counts of one split. Law: rows_read = rows_kept + sum(bad.values())."""

    files: list[SourceFile] = field(default_factory=list)
    rows_read: int = 0
    rows_kept: int = 0
    blank: int = 0
    """blank lines and blank texts, which are no rows"""
    bad: Counter[str] = field(default_factory=Counter)
    """reason -> rows that were left out"""
    first_bad: list[str] = field(default_factory=list)
    """the first ten of them, as file:line: reason"""
    cut: Counter[str] = field(default_factory=Counter)
    """source, target or text -> rows of which the end was cut at the limit"""
    tokens: Counter[str] = field(default_factory=Counter)
    """input: tokens that the model reads; target: tokens that have a label"""
    in_train: int | None = None
    """rows of this split of which source or text is also in the training split; the target where
    all training rows share one source"""

    def reject(self, reason: str, line: str) -> None:
        """Count a row that is left out; `line` says which and why."""
        self.bad[reason] += 1
        if len(self.first_bad) < SHOWN:
            self.first_bad.append(line)

    @property
    def rows_bad(self) -> int:
        """How many rows were left out."""
        return sum(self.bad.values())

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        counts = {"bad": dict(self.bad), "cut": dict(self.cut), "tokens": dict(self.tokens)}
        return vars(self) | counts | {"files": [asdict(file) for file in self.files]}


@dataclass
class DataReport:
    """The counts of all splits, and a fingerprint of what they were made from."""

    splits: dict[str, SplitReport] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    """what of the config chooses rows: columns, limit, on_bad_row, ..."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the files' hashes (not their names' folders) and the choice of rows."""
        files = {
            split: [(Path(file.name).name, file.sha256) for file in report.files]
            for split, report in self.splits.items()
        }
        text = json.dumps([files, self.choice], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for data.json."""
        splits = {name: report.as_dict() for name, report in self.splits.items()}
        return {"fingerprint": self.fingerprint, "choice": self.choice, "splits": splits}


def check_bad_rows(reports: dict[str, SplitReport], on_bad_row: str) -> None:
    """Raise DataError for bad rows under `stop`, and under `skip` when too little would be left."""
    bad = {name: report for name, report in reports.items() if report.rows_bad}
    if bad and on_bad_row == "stop":
        raise DataError(describe_bad_rows(bad))
    for name, report in bad.items():
        if report.rows_bad > MOST_SKIPPED * report.rows_read:
            raise DataError(
                f"{name}: data.on_bad_row is skip, but {report.rows_bad} of {report.rows_read} "
                "rows cannot be used, more than half; are the file and data.columns right?\n"
                + "\n".join(_reasons({name: report}))
            )


def describe_bad_rows(bad: dict[str, SplitReport]) -> str:
    """The first ten bad rows with file and line, the count by reason, and what to do."""
    total = sum(report.rows_bad for report in bad.values())
    read = sum(report.rows_read for report in bad.values())
    head = f"{total} of {read} rows of {', '.join(bad)} cannot be used"
    todo = "mend them, or go on without: data.on_bad_row: skip"
    if any(2 * report.bad["missing column"] > report.rows_read for report in bad.values()):
        todo = "say which column is which: data.columns: {field: column}"
    return "\n".join([head, *_reasons(bad), todo])


def _reasons(bad: dict[str, SplitReport]) -> list[str]:
    lines = [line for report in bad.values() for line in report.first_bad][:SHOWN]
    counts: Counter[str] = sum((report.bad for report in bad.values()), Counter())
    by_reason = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    return [*(f"  {line}" for line in lines), f"  in all: {by_reason}"]
