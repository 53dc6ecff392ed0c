"""The files of numbers, and markdown tables and plots of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NO_PLOT = "no plot: matplotlib is not installed; pip install matplotlib (or tvd-gen[plots])"


def read_lines(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a JSON-lines file that all have these keys; ValueError names the line."""
    found = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:  # UnicodeDecodeError is one
            raise ValueError(f"{file}:{number}: no JSON: {error}") from None
        if not isinstance(record, dict) or any(key not in record for key in keys):
            raise ValueError(f"{file}:{number}: has not {', '.join(keys)}; is it the right file?")
        found.append(record)
    if not found:
        raise ValueError(f"{file}: is empty")
    return found


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, the first column of names, the others of numbers to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float, digits: int = 3) -> str:
    """A number for a table, a dash for nan."""
    return "-" if value != value else f"{value:.{digits}f}"


def draw(
    stem: Path,
    paint: Callable[[Any], None],
    *,
    rows: int = 1,
    columns: int = 1,
    height: float = 3.4,
) -> list[Path]:
    """The figure that `paint` puts on its (rows, columns) axes, as stem.svg and stem.png.

    Without matplotlib one line says how to get it, and there is no figure. The svg's bytes are the
    same each time.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print(NO_PLOT)
        return []
    bare = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with matplotlib.rc_context({"svg.hashsalt": stem.name, **bare}):
        figure = Figure(figsize=(4.6 * columns, height * rows), layout="constrained")
        paint(figure.subplots(rows, columns, squeeze=False))
        paths = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150)
    return paths
