#!/usr/bin/env python3
"""Build the corpora that ship with tvd_gen from Debian's own package index, on Debian or Ubuntu.

    python scripts/build_corpora.py               # fetch the index, write tvd_gen/corpora, check it
    python scripts/build_corpora.py --check       # only check what is there
    python scripts/build_corpora.py --every-description FOLDER    # for small_tasks.py

It needs apt and the standard library; no root: lists and packages go to a private folder.
The same index gives the same bytes. The split of a row hangs on its source package alone, so a
package keeps its split when the index grows.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]
Splits = dict[str, list[Row]]
Key = Callable[[Row], str]

SHIPPED = Path(__file__).resolve().parent.parent / "tvd_gen" / "corpora"
APT_HELPER = "/usr/lib/apt/apt-helper"
# test first: a text that turns up in several splits stays in the first of this order
PERCENT = {"test": range(10), "validation": range(10, 20), "train": range(20, 100)}


# --- apt ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Apt:
    """apt with lists and packages of its own under `state`, so that no root is needed."""

    state: Path

    def _command(self, *words: str) -> list[str]:
        options = {
            "Dir::State": self.state,
            "Dir::State::Lists": self.state / "lists",
            "Dir::State::status": "/var/lib/dpkg/status",
            "Dir::Cache": self.state / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "en,de",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        return ["apt-get", "--quiet", *flags, *words]

    def update(self) -> None:
        """Fetch the index: Packages, Translation-en and Translation-de."""
        for folder in ("lists/partial", "cache/archives/partial"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(self._command("update"), check=True, stdout=subprocess.DEVNULL)

    def targets(self) -> list[Row]:
        """The downloaded index files of the distribution's main component, base release only."""
        text = self._output("indextargets")
        targets = [dict(fields(stanza)) for stanza in text.split("\n\n")]
        return [t for t in targets if _is_wanted(t)]

    def download(self, package: str) -> Path:
        """The package's .deb file."""
        folder = self.state / "debs"
        folder.mkdir(exist_ok=True)
        subprocess.run(
            self._command("download", package), cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        return next(folder.glob(f"{package}_*.deb"))

    def _output(self, *words: str) -> str:
        return subprocess.run(
            self._command(*words), check=True, capture_output=True, text=True
        ).stdout


def _is_wanted(target: Row) -> bool:
    # the release name of updates, security and backports holds a dash: noble-updates
    return (
        target.get("Origin") in ("Debian", "Ubuntu")
        and target.get("Component") == "main"
        and "-" not in target.get("Release", "-")
        and Path(target.get("Filename", "/none")).exists()
    )


def open_index(path: str) -> str:
    """The text of an index file, whatever its compression."""
    done = subprocess.run([APT_HELPER, "cat-file", path], check=True, capture_output=True)
    return done.stdout.decode("utf-8")


def fields(stanza: str) -> Iterator[tuple[str, str]]:
    """The fields of a stanza; lines that go on keep their leading space."""
    for part in re.split(r"\n(?=\S)", stanza.strip("\n")):
        name, colon, value = part.partition(":")
        if colon:
            yield name, value.strip(" ")


# --- descriptions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A binary package: where it comes from and what it says of itself."""

    name: str
    source: str
    section: str
    digest: str  # of the English description; a translation of another text has another digest


@dataclass(frozen=True)
class Description:
    """A synopsis and the paragraphs after it."""

    synopsis: str
    paragraphs: tuple[str, ...]


def read_packages(text: str) -> dict[str, Package]:
    """name -> Package, from a Packages file."""
    rows = (dict(fields(stanza)) for stanza in text.split("\n\n") if stanza.strip())
    return {row["Package"]: _package(row) for row in rows}


def _package(row: Row) -> Package:
    source = row.get("Source", row["Package"]).split()[0]
    return Package(row["Package"], source, row.get("Section", ""), row.get("Description-md5", ""))


def read_descriptions(text: str, language: str) -> dict[tuple[str, str], Description]:
    """(package, digest) -> Description, from a Translation file."""
    found = {}
    for stanza in text.split("\n\n"):
        row = dict(fields(stanza))
        if body := row.get(f"Description-{language}"):
            found[row["Package"], row["Description-md5"]] = parse_description(body)
    return found


def parse_description(body: str) -> Description:
    """Synopsis, then paragraphs: " ." parts them, and each item of a list is joined on."""
    synopsis, _, rest = body.partition("\n")
    parts = re.split(r"^ \.\s*$", rest, flags=re.MULTILINE)
    paragraphs = (clean(part) for part in parts)
    return Description(clean(synopsis), tuple(p for p in paragraphs if p))


def clean(text: str) -> str:
    """One line without doubled blanks."""
    return re.sub(r"\s+", " ", text).strip()


def normalised(text: str) -> str:
    """What two texts share when we call them the same: letters only, small, no digits."""
    return re.sub(r"[\W\d_]+", " ", text.casefold()).strip()


# --- the corpora -------------------------------------------------------------------------------

DUMMY_NAME = re.compile(r"-(dbg|dbgsym|dev|data|common|doc|docs|examples|prof|udeb|l10n|i18n)$")
DUMMY_TEXT = re.compile(
    r"transitional|dummy|metapackage|meta-package|virtual package|empty package|\(common files\)"
    r"|debug(ging)? symbols|can be safely removed|depends on",
    re.IGNORECASE,
)
DUMMY_SECTIONS = {"debug", "oldlibs", "metapackages", "translations", "localization"}


def summaries(packages: dict[str, Package], english: dict[tuple[str, str], Description]) -> Splits:
    """Long description -> synopsis, one row per source package."""
    rows: dict[str, Row] = {}
    for package in sorted(packages.values(), key=lambda p: (p.name != p.source, p.name)):
        found = english.get((package.name, package.digest))
        if found and package.source not in rows and _is_summary(package, found):
            rows[package.source] = {
                "source": "\n".join(found.paragraphs),
                "target": found.synopsis,
                "package": package.name,
            }
    repeated = Counter(normalised(row["target"]) for row in rows.values())
    kept = {s: row for s, row in rows.items() if repeated[normalised(row["target"])] == 1}
    return split(kept.items(), {"train": 6000, "validation": 500, "test": 500}, _summary_texts)


def _is_summary(package: Package, found: Description) -> bool:
    text = "\n".join(found.paragraphs)
    words = [w for w in normalised(found.synopsis).split() if len(w) > 3]
    return (
        not DUMMY_NAME.search(package.name)
        and package.section not in DUMMY_SECTIONS
        and not DUMMY_TEXT.search(found.synopsis + " " + text)
        and len(found.synopsis.split()) >= 3
        and 15 <= len(found.synopsis) <= 80
        and 150 <= len(text) <= 1000
        and not normalised(text).startswith(normalised(found.synopsis))
        and any(word in normalised(text) for word in words)
    )


def _summary_texts(row: Row) -> list[str]:
    # the first paragraph too: packages of one project often differ in the last one only
    return [row["source"], row["target"], row["source"].split("\n")[0]]


DUMMY = re.compile(r"transitional|dummy package|debug(?:ging)? symbols", re.IGNORECASE)


def every_description(packages: dict[str, Package], english: str) -> Splits:
    """Long description (`text`) -> synopsis (`summary`) of nearly all packages, in index order.

    `english` is the Translation-en file. Left out are dummies, short texts and exact repetitions;
    paragraphs are joined, and texts cut at 4,000 characters. A source package is in one split.
    """
    splits: Splits = {"train": [], "valid": [], "test": []}
    seen: set[tuple[str, str]] = set()
    for stanza in english.split("\n\n"):
        row = dict(fields(stanza))
        synopsis, _, rest = row.get("Description-en", "").partition("\n")
        lines = (line.strip() for line in rest.split("\n"))
        text = clean(" ".join(line for line in lines if line != "."))[:4000]
        pair = text, synopsis.strip()
        dummy = any(DUMMY.search(part) for part in pair)
        if len(text) < 80 or len(pair[1]) < 10 or dummy or pair in seen:
            continue
        seen.add(pair)
        name = row["Package"]
        source = packages[name].source if name in packages else name
        kept = {"package": name, "source": source, "text": text, "summary": pair[1]}
        percent = int(hashlib.md5(source.encode()).hexdigest(), 16) % 100
        splits["valid" if percent < 3 else "test" if percent < 6 else "train"].append(kept)
    return splits


def translations(
    packages: dict[str, Package],
    english: dict[tuple[str, str], Description],
    german: dict[tuple[str, str], Description],
) -> Splits:
    """German <-> English synopses and paragraphs, aligned where their numbers agree."""
    rows = []
    for package in sorted(packages.values(), key=lambda p: p.name):
        key = package.name, package.digest
        if key in english and key in german:
            pairs = aligned(german[key], english[key])
            rows += [
                (package.source, {"de": de, "en": en, "package": package.name})
                for de, en in pairs
                if _is_translation(de, en)
            ]
    return split(rows, {"train": 15000, "validation": 500, "test": 500}, _translation_texts)


def _translation_texts(row: Row) -> list[str]:
    return [row["de"], row["en"]]


def aligned(left: Description, right: Description) -> list[tuple[str, str]]:
    """The synopses, and the paragraphs when both sides have as many."""
    pairs = [(left.synopsis, right.synopsis)]
    if len(left.paragraphs) == len(right.paragraphs):
        pairs += zip(left.paragraphs, right.paragraphs, strict=True)
    return pairs


def _is_translation(de: str, en: str) -> bool:
    return (
        15 <= len(en) <= 200
        and 15 <= len(de) <= 240
        and 0.6 <= len(de) / len(en) <= 1.9
        and len(normalised(en).split()) >= 2
        and normalised(de) != normalised(en)
        and sorted(re.findall(r"\d+", de)) == sorted(re.findall(r"\d+", en))
        and "<trans>" not in de
        and not _looks_english(de)
    )


def _looks_english(text: str) -> bool:
    words = normalised(text).split()
    english = sum(w in {"the", "and", "of", "for", "with", "is", "this", "to"} for w in words)
    return english > 0.15 * len(words)


def jargon(text: str) -> Splits:
    """The Jargon File: an entry of the lexicon, or a piece of a chapter, is a document."""
    documents = [*_entries(text), *_chapters(text)]
    rows = [(name, {"text": body}) for name, body in documents if len(body) >= 80]
    return split(rows, {"train": 9999, "validation": 9999, "test": 9999}, lambda row: [row["text"]])


def _entries(text: str) -> Iterator[tuple[str, str]]:
    lexicon, _, _ = text.partition("Part III. Appendices")
    parts = re.split(r"^   :(?=\S[^\n]*?:(?: |$))", lexicon, flags=re.MULTILINE)
    for part in parts[1:]:
        headword, _, rest = part.partition(":")
        grammar, *body = _paragraphs(f"   {headword},{rest}")
        yield headword, "\n".join([grammar.rstrip(","), *body])


def _chapters(text: str) -> Iterator[tuple[str, str]]:
    prose = text.split("Part II. The Jargon Lexicon")[0] + text.split("Part III. Appendices")[1]
    parts = re.split(r"^((?:Chapter \d+|Appendix [A-Z])\. [^\n]*)$", prose, flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if "Revision History" not in title:
            yield from ((title, piece) for piece in _pieces(_paragraphs(body)))


def _pieces(paragraphs: Iterable[str], size: int = 1500) -> Iterator[str]:
    piece = ""
    for paragraph in paragraphs:
        if piece and len(piece) + len(paragraph) > size:
            yield piece
            piece = ""
        piece = f"{piece}\n{paragraph}".strip()
    yield piece


def _paragraphs(text: str) -> Iterator[str]:
    """Running text: without tables, drawings and program code; links lose their braces."""
    for block in re.split(r"\n\s*\n", text):
        is_indented = re.match(r"(\n*) {4,}\S", block)
        if not is_indented and not re.search(r"[─-╿]|═", block) and clean(block):
            yield re.sub(r"\{([^{}]*)\}", r"\1", clean(block))


# --- splits ------------------------------------------------------------------------------------


def split(
    rows: Iterable[tuple[str, Row]],
    sizes: dict[str, int],
    texts: Callable[[Row], list[str]],
) -> Splits:
    """Rows to splits by the hash of their unit; no normalised text occurs twice in the corpus."""
    ordered = sorted(rows, key=lambda pair: (_hash(pair[0]), json.dumps(pair[1])))
    seen: set[str] = set()
    splits: Splits = {}
    for name in PERCENT:
        chosen = [row for unit, row in ordered if _hash(unit) % 100 in PERCENT[name]]
        splits[name] = _unseen(chosen, sizes[name], texts, seen)
    return splits


def _unseen(
    rows: Iterable[Row], size: int, texts: Callable[[Row], list[str]], seen: set[str]
) -> list[Row]:
    kept: list[Row] = []
    for row in rows:
        keys = {normalised(text) for text in texts(row)}
        if len(kept) < size and not keys & seen and "" not in keys:
            seen |= keys
            kept.append(row)
    return kept


def _hash(unit: str) -> int:
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8], "big")


# --- files -------------------------------------------------------------------------------------


def write_corpus(folder: Path, splits: Splits, notice: str) -> None:
    """{split}.jsonl.gz, the same bytes for the same rows, and NOTICE."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl.gz").write_bytes(_gzip(lines.encode("utf-8")))
    (folder / "NOTICE").write_text(notice, encoding="utf-8")


def _gzip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def read_split(folder: Path, name: str) -> list[Row]:
    """The rows of one split of a corpus."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


FIELDS = {
    "debian-descriptions": ("source", "target", "package"),
    "debian-translations": ("de", "en", "package"),
    "jargon": ("text",),
}


def check(corpora: Path) -> None:
    """Print the counts; fail when a row is broken or a text is in two splits."""
    for corpus, names in FIELDS.items():
        splits = {name: read_split(corpora / corpus, name) for name in PERCENT}
        seen: dict[str, str] = {}
        for name, rows in splits.items():
            _check_split(f"{corpus} {name}", name, rows, names, seen)
        size = sum(f.stat().st_size for f in (corpora / corpus).iterdir())
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())
        print(f"{corpus}: {counts}; {size / 1e6:.2f} MB")


def _check_split(
    where: str, name: str, rows: list[Row], names: tuple[str, ...], seen: dict[str, str]
) -> None:
    assert rows, f"{where}: no rows"
    for row in rows:
        assert tuple(row) == names, f"{where}: fields {tuple(row)}, expected {names}"
        for field in names:
            assert row[field].strip(), f"{where}: an empty {field}: {row}"
            text = normalised(row[field])
            if field != "package":
                other = seen.setdefault(text, name)
                assert other == name, f"{where}: also in {other}: {row[field]!r}"


# --- notices -----------------------------------------------------------------------------------

REBUILD = """
    Rebuilt by `python scripts/build_corpora.py` on Debian or Ubuntu: the rows come from the index
    that the machine's apt fetches on that day.
"""


def description_notice(what: str, snapshot: str, packages: int, terms: str) -> str:
    """NOTICE of a corpus that comes from the package index."""
    return _filled(
        what,
        f"Origin: {snapshot}, component main; {packages} packages. "
        "The field `package` of a row names the package that the text describes.",
        terms,
        REBUILD,
    )


DESCRIPTION_TERMS = (
    "Terms: a description is part of its package's source and comes under the terms of that "
    "package, all of them free software by the Debian Free Software Guidelines; "
    "/usr/share/doc/PACKAGE/copyright of the package says which. The texts' authors are the "
    "packages' maintainers and upstream authors."
)
TRANSLATION_TERMS = (
    DESCRIPTION_TERMS + " The German texts were made by the volunteers of the Debian Description "
    "Translation Project and published under the terms of the texts that they translate."
)
JARGON_TERMS = (
    "Terms: public domain. The package's copyright file says: \"This document (the Jargon File) "
    'is in the public domain, to be freely used, shared, and modified." Please cite it as '
    '"The on-line hacker Jargon File, version 4.4.7, 29 Dec 2003". It is a record of slang '
    "through fifty years, and parts of it are crude."
)


def _filled(*paragraphs: str) -> str:
    return "\n\n".join(textwrap.fill(clean(p), width=98) for p in paragraphs) + "\n"


def snapshot_of(target: Row) -> str:
    """Distribution, release and version of an index file, and the day its archive signed it."""
    release = next(iter(_release_files(target)), "")
    date = re.search(r"^Date: (.*)$", release, flags=re.MULTILINE)
    day = date.group(1) if date else "unknown date"
    return (
        f"package index of {target['Origin']} {target.get('Version', '')} "
        f"({target['Codename']}), dated {day}"
    )


def _release_files(target: Row) -> Iterator[str]:
    lists = Path(target["Filename"]).parent
    for path in sorted(lists.glob(f"*_dists_{target['Release']}_InRelease")):
        yield path.read_text(encoding="utf-8")


# --- main --------------------------------------------------------------------------------------


def fetch(apt: Apt) -> tuple[dict[tuple[str, str], str], str]:
    """The text of the index files, by kind and language, and which index it is."""
    apt.update()
    targets = apt.targets()
    index = {(t["Created-By"], t.get("Language", "")): open_index(t["Filename"]) for t in targets}
    return index, snapshot_of(targets[0])


def build(corpora: Path, apt: Apt) -> None:
    """Fetch the index and write the three corpora."""
    index, snapshot = fetch(apt)
    packages = read_packages(index["Packages", ""])
    english = read_descriptions(index["Translations", "en"], "en")
    german = read_descriptions(index["Translations", "de"], "de")
    _write_summaries(corpora, summaries(packages, english), snapshot)
    _write_translations(corpora, translations(packages, english, german), snapshot)
    _write_jargon(corpora, apt.download("jargon-text"), snapshot)


def build_every_description(folder: Path, apt: Apt) -> None:
    """Fetch the index and write {train,valid,test}.jsonl; print rows and SHA-256."""
    index, snapshot = fetch(apt)
    print(snapshot)
    splits = every_description(read_packages(index["Packages", ""]), index["Translations", "en"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_bytes(lines.encode("utf-8"))
        print(f"{name}: {len(rows)} rows, {hashlib.sha256(lines.encode('utf-8')).hexdigest()}")


def _write_summaries(corpora: Path, splits: Splits, snapshot: str) -> None:
    what = (
        "debian-descriptions: the long description of a Debian package (source) and its synopsis "
        "(target). One row per source package; left out are development, data, debug and "
        "transitional packages, a synopsis that several packages share, that opens the "
        "description word for word, or that shares no longer word with it. No text is in two "
        "splits, digits and punctuation aside."
    )
    notice = description_notice(what, snapshot, _packages(splits), DESCRIPTION_TERMS)
    write_corpus(corpora / "debian-descriptions", splits, notice)


def _write_translations(corpora: Path, splits: Splits, snapshot: str) -> None:
    what = (
        "debian-translations: German and English synopses and paragraphs of the descriptions of "
        "Debian packages, aligned where both sides have the same number of paragraphs, not "
        "checked by hand. Split by source package; no text is in two splits."
    )
    notice = description_notice(what, snapshot, _packages(splits), TRANSLATION_TERMS)
    write_corpus(corpora / "debian-translations", splits, notice)


def _write_jargon(corpora: Path, deb: Path, snapshot: str) -> None:
    listing = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True)
    member = "./usr/share/doc/jargon-text/jargon.txt.gz"
    packed = subprocess.run(
        ["tar", "-xO", member], input=listing.stdout, check=True, capture_output=True
    ).stdout
    version = deb.name.split("_")[1]
    what = (
        "jargon: the Jargon File, version 4.4.7. An entry of the lexicon, or a piece of a chapter "
        "of up to 1500 characters, is a document; tables, drawings and program code are left out. "
        "Split by entry and chapter."
    )
    origin = f"Origin: package jargon-text {version}; {snapshot}."
    text = gzip.decompress(packed).decode("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    splits = jargon(text)
    notice = _filled(what, origin, JARGON_TERMS, REBUILD)
    write_corpus(corpora / "jargon", splits, notice)


def _packages(splits: Splits) -> int:
    return len({row["package"] for rows in splits.values() for row in rows})


def main() -> None:
    """Read the command line, build, check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder of the corpora")
    parser.add_argument("--state", type=Path, help="keep the fetched lists here")
    parser.add_argument("--check", action="store_true", help="only check the files that are there")
    parser.add_argument(
        "--every-description",
        type=Path,
        metavar="FOLDER",
        help="write nearly all descriptions there, and no corpus",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        apt = Apt((options.state or Path(scratch)).resolve())
        if options.every_description:
            build_every_description(options.every_description, apt)
            return
        if not options.check:
            build(options.output, apt)
    check(options.output)


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    main()
