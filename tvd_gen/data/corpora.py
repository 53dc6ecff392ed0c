"""The corpora that ship with the package: tvd_gen/corpora/<name>/<split>.jsonl.gz."""

from pathlib import Path

from tvd_gen.data.rows import did_you_mean
from tvd_gen.errors import DataError


def corpora_folder() -> Path:
    """Where the shipped corpora lie."""
    return Path(__file__).parents[1] / "corpora"


def shipped_corpora() -> list[str]:
    """The names that `data.source` may have."""
    return sorted(file.parent.name for file in corpora_folder().glob("*/train.jsonl.gz"))


def corpus_files(name: str) -> dict[str, str]:
    """Split -> file of a shipped corpus; DataError with the names there are for another one."""
    known = shipped_corpora()
    if name not in known:
        raise DataError(
            f"data.source: no corpus {name!r} ships with tvd-gen; there are: "
            f"{', '.join(known) or 'none'}{did_you_mean(name, known)}"
        )
    files = sorted((corpora_folder() / name).glob("*.jsonl.gz"))
    return {file.name.removesuffix(".jsonl.gz"): str(file) for file in files}
