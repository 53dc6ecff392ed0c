"""Datasets of the Hugging Face hub, with the checks of files; no code of theirs is ever run."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import datasets
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub import constants

from tvd_gen.data.readers import Numbered
from tvd_gen.data.report import SourceFile
from tvd_gen.data.rows import Picker
from tvd_gen.data.spec import DataSpec
from tvd_gen.errors import DataError

FAULTS = (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetsError)
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
INSTEAD = "use data.files with local files, or data.source with a shipped corpus"


class HubSource:
    """One split of a hub dataset; the number of a record is its row."""

    def __init__(self, spec: DataSpec, split: str, rows: Any):
        self.spec, self.split, self.rows = spec, split, rows

    def records(self) -> Iterator[Numbered]:
        """The rows in order; a streamed source that breaks is a DataError."""
        try:
            yield from enumerate(self._rows(), start=1)
        except (ConnectionError, OSError) as error:
            raise DataError(f"{self.name}: reading broke off: {_first_line(error)}") from None

    def _rows(self) -> Iterator[dict[str, Any]]:
        for batch in self.rows.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    @property
    def name(self) -> str:
        """What messages call it."""
        return " ".join(filter(None, (self.spec.hub, self.spec.subset, self.split)))

    def place(self, number: int, field: str | None = None) -> str:
        """Dataset, split and row."""
        return f"{self.name} row {number}"

    def check(self, picker: Picker) -> None:
        """The dataset must have the columns; the others, images perhaps, are not read."""
        names = self.rows.column_names
        if names:
            picker.check_columns(names, self.name)
            wanted = {c if c in names else c.split(".")[0] for c in picker.columns.values()}
            self.rows = self.rows.select_columns([name for name in names if name in wanted])

    def files(self) -> list[SourceFile]:
        """The dataset's name and fingerprint: the hub's files are not read as such."""
        mark = getattr(self.rows, "_fingerprint", "")
        text = f"{self.name} {self.spec.revision} {mark}"
        return [SourceFile(self.name, hashlib.sha256(text.encode()).hexdigest())]


def hub_source(spec: DataSpec, split: str, *, streaming: bool) -> HubSource:
    """Load one split by `hub`, `subset`, `revision` and `splits`; one DataError for any fault."""
    wanted = spec.splits.get(split, split)
    try:
        with _offline_when_unreachable():
            rows = datasets.load_dataset(
                spec.hub, spec.subset, split=wanted, revision=spec.revision, streaming=streaming
            )
    except FAULTS as error:
        raise DataError(_explain(spec, split, wanted, error)) from None
    return HubSource(spec, wanted, rows)


def hub_splits(spec: DataSpec) -> list[str]:
    """The names of the dataset's own splits; one DataError when it cannot be asked."""
    try:
        with _offline_when_unreachable():
            names = datasets.get_dataset_split_names(spec.hub, spec.subset, revision=spec.revision)
    except FAULTS as error:
        raise DataError(_explain(spec, "", "", error)) from None
    return list(map(str, names))


def _explain(spec: DataSpec, split: str, wanted: str, error: Exception) -> str:
    text, name = _first_line(error), spec.hub
    if "scripts are no longer supported" in text:
        return (
            f"data.hub: {name} is a script, which is never run; "
            "try data.revision: refs/convert/parquet, or " + INSTEAD
        )
    if "unknown split" in text.lower() or "Unrecognized instruction" in text:
        return (
            f"data.hub: {name} has no split {wanted!r} ({text}); "
            f'choose one with data.splits: {{{split}: "..."}}, e.g. "train[:1%]"'
        )
    if "BuilderConfig" in text or "Config name is missing" in text:
        return f"data.subset: {text}"
    if isinstance(error, DatasetNotFoundError | DataFilesNotFoundError):
        return f"data.hub: {text}; check the id, subset and revision, or {INSTEAD}"
    if isinstance(error, ConnectionError | OSError):
        return f"data.hub: cannot reach {name} on the hub ({text}); {INSTEAD}"
    return f"data.hub: {name} cannot be loaded ({text}); {INSTEAD}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    # Without a network each call to the hub fails after 24 s; a cached copy is found at once.
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not _reachable():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _reachable(timeout: float = 5.0) -> bool:
    if any(os.environ.get(name) for name in PROXIES):
        return True
    url = urlparse(constants.ENDPOINT)
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True
