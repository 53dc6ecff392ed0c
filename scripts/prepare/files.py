"""What the preparations share: archives that are read in place, JSON lines and a manifest.

A place is a folder, a tar (also .tgz, .tar.gz, .tar.bz2) or a zip; its files go by their last name,
wherever in it they lie, and nothing is unpacked. Faults are ValueErrors of one line.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any

Row = dict[str, str]
BLOCK = 1 << 20
# EOFError, zlib's, lzma's and bz2's OSError are those of an archive cut short or spoilt
BROKEN = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError)


def parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The options that every preparation has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "place", type=Path, nargs="?", help="the archive, or the folder it unpacks to"
    )
    made.add_argument("--sha256", help="refuse an archive with another hash")
    made.add_argument("--output", type=Path, default=Path(output), help=f"default: {output}")
    return made


def start(main: Callable[[], None]) -> None:
    """Run a script's main; its fault is one line on standard error, and exit code 1."""
    try:
        main()
    except (ValueError, OSError) as fault:
        raise SystemExit(" ".join(f"{type(fault).__name__}: {fault}".split())) from fault


# --- reading -----------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hashed(path: Path) -> dict[str, Any]:
    """What a manifest says of a file that was read."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def inputs_of(place: Path, names: Sequence[str], sha256: str | None) -> dict[str, dict[str, Any]]:
    """file -> its hash and bytes: of the archive, or of the folder's files of these names.

    Raises ValueError where the archive has another hash than `sha256`, or is spoilt.
    """
    if place.is_dir():
        if sha256:
            raise ValueError(f"{place}: --sha256 is the hash of an archive, and this is a folder")
        paths = [_only(sorted(place.rglob(name)), name, place) for name in names]
    else:
        paths = [place]
    found = {path.name: hashed(path) for path in paths}
    if sha256 and found[place.name]["sha256"] != sha256.lower():
        raise ValueError(f"{place}: its SHA-256 is {found[place.name]['sha256']}, not {sha256}")
    if not place.is_dir():
        _read_gzip(place)
    return found


def lines(place: Path, name: str) -> Iterator[str]:
    """The lines of a file of the place, by its last name. They end at \\n and nowhere else.

    A byte order mark at its beginning is none of the text. Raises ValueError for an empty file.
    """
    number = 0
    with _archive(place), _opened(place, name) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n")
        for number, line in enumerate(_decoded(text, place, name), start=1):
            if "\0" in line:
                raise ValueError(f"{place}: {name}:{number}: a zero byte; is it a text?")
            yield line.rstrip("\r\n")
    if not number:
        raise ValueError(f"{place}: {name}: is empty")


def _decoded(text: io.TextIOWrapper, place: Path, name: str) -> Iterator[str]:
    try:
        yield from text
    except UnicodeDecodeError as fault:
        raise ValueError(f"{place}: {name}: is no UTF-8 ({fault.reason})") from fault


@contextmanager
def _archive(place: Path) -> Iterator[None]:
    try:
        yield
    except BROKEN as fault:
        raise ValueError(f"{place}: cannot be read as a zip or tar archive: {fault}") from fault


def _read_gzip(place: Path) -> None:
    """To its end, where its checksum stands, and which tarfile may not reach.

    The other formats have a checksum for each block or file.
    """
    with place.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return
    with _archive(place), gzip.open(place) as file:
        while file.read(BLOCK):
            pass


@contextmanager
def _opened(place: Path, name: str) -> Iterator[IO[bytes]]:
    if place.is_dir():
        with _only(sorted(place.rglob(name)), name, place).open("rb") as file:
            yield file
    elif not place.is_file():
        raise ValueError(f"{place}: no such file or folder")
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            members = [each for each in archive.namelist() if Path(each).name == name]
            with archive.open(_only(members, name, place)) as file:
                yield file
    else:
        with tarfile.open(place) as tar:
            parts = [each for each in tar if each.isfile() and Path(each.name).name == name]
            opened = tar.extractfile(_only(parts, name, place))
            assert opened is not None  # it is a file
            yield opened


def _only(found: Sequence[Any], name: str, place: Path) -> Any:
    if len(found) != 1:
        raise ValueError(f"{place}: holds {len(found) or 'no'} files {name}, and one is needed")
    return found[0]


def paired(left: Iterable[str], right: Iterable[str], what: str) -> Iterator[tuple[str, str]]:
    """Parallel lines as pairs; ValueError where one side ends first."""
    try:
        yield from zip(left, right, strict=True)
    except ValueError as fault:
        if "zip()" not in str(fault):
            raise
        raise ValueError(f"{what}: the two sides differ in their number of lines") from fault


# --- writing -----------------------------------------------------------------------------------


def write_corpus(
    output: Path,
    splits: Mapping[str, Iterable[Row]],
    inputs: Mapping[str, Any],
    published: Mapping[str, int],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write {split}.jsonl and manifest.json; say how many rows, and whether they are those
    published. Where one fails, an earlier run's stay; a manifest stands beside its own files only.

    Raises ValueError for a split without rows.
    """
    staged = output / ".part"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        counts = {split: _write_rows(staged / f"{split}.jsonl", splits[split]) for split in splits}
        outputs = {
            f"{split}.jsonl": {"rows": count, "sha256": sha256_of(staged / f"{split}.jsonl")}
            for split, count in counts.items()
        }
        manifest = {"inputs": dict(inputs), "outputs": outputs, "notes": list(notes)}
        manifest["as_published"] = counts == dict(published)
        (staged / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        (output / "manifest.json").unlink(missing_ok=True)  # it would vouch for half of each
        for name in (*outputs, "manifest.json"):
            (staged / name).replace(output / name)
    finally:
        shutil.rmtree(staged)
    for split, count in counts.items():
        print(f"{output / split}.jsonl: {count} rows{_compared(count, published.get(split))}")
    for note in notes:
        print(note)
    return manifest


def _compared(count: int, published: int | None) -> str:
    if published is None:
        return ""
    return ", as published" if count == published else f"; published are {published}"


def _write_rows(path: Path, rows: Iterable[Row]) -> int:
    """How many there are."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        raise ValueError(f"{path.name}: would have no rows")
    return count
