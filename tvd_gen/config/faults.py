"""pydantic's errors -> one plain line each, with the nearest right name."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from tvd_gen.config.document import Fault, Path

MAX_LISTED = 14


def choices(name: str, known: Iterable[str]) -> str:
    """`did you mean x?`, or the whole list where nothing is near and the list is short."""
    names = list(known)
    if near := nearest(name, names):
        return f"did you mean {near}?"
    listed = ", ".join(sorted(names))
    return f"one of {listed}" if len(names) <= MAX_LISTED else f"there are {len(names)} names"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like this one, if any is."""
    folded = {each.lower().replace("-", "_"): each for each in known}
    wanted = name.lower().replace("-", "_")
    # the first 100 letters: the comparison is quadratic
    found = difflib.get_close_matches(wanted[:100], folded, n=1, cutoff=cutoff)
    longer = [each for each in folded if len(wanted) > 3 and each.startswith(wanted)]
    best = min(longer, key=len) if longer else next(iter(found), None)
    return folded[best] if best else None


def shown(value: Any) -> str:
    """A value as a fault shows it: short, and without control characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_WANTED = {
    "int": "a whole number",
    "int_from_float": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of key: value lines",
    "mapping": "a section of key: value lines",
    "model": "a section of key: value lines",
    "model_attributes": "a section of key: value lines",
    "dataclass": "a section of key: value lines",
}
_LIMITS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def _plain(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def _kind_text(kind: str, given: Any) -> str | None:
    wanted = _WANTED.get(kind.removesuffix("_type").removesuffix("_parsing"))
    if wanted is None:
        return None
    hint = ""
    if isinstance(given, str) and "number" in wanted and _reads_as_number(given):
        hint = " (text); remove the quotes"
    elif wanted == "true or false" and given in ("yes", "no", "on", "off"):
        hint = " (text, in YAML 1.2)"
    elif wanted == "text" and not isinstance(given, (dict, list)):
        hint = "; put it in quotes"
    return f"must be {wanted}, got {shown(given)}{hint}"


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def fault_text(error: ErrorDetails) -> str:
    """What is wrong, in our words."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _LIMITS:
        name, sign = _LIMITS[kind]
        return f"must be {sign} {_plain(context[name])}, got {shown(given)}"
    if kind in ("literal_error", "enum"):
        words = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        return f"unknown value {shown(given)}; {choices(str(given), words)}"
    if kind == "string_pattern_mismatch":
        return f"must be letters, digits, '.', '_' and '-', at most 64, got {shown(given)}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind == "tvd_gen":
        return error["msg"]
    return _kind_text(kind, given) or f"{error['msg']}, got {shown(given)}"


def missing_text(section: Path, name: str) -> str:
    """What to say where a field is not there."""
    return f"is missing; add {name}: ..." if section else f"is missing; add a section {name}: ..."


_ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "warmup_ratio": "warmup_steps (a number below 1 is a share)",
    "warmup": "warmup_steps",
    "beam_size": "num_beams",
    "beams": "num_beams",
    "dataset": "data",
    "loss": "objective",
}


def unknown_text(path: Path, sections: Mapping[str, Sequence[str]]) -> str:
    """An unknown field: the nearest sibling, or the section where the name belongs."""
    name, home = str(path[-1]), ".".join(map(str, path[:-1]))
    siblings = sections.get(home, ())
    alias = _ALIASES.get(name, "")
    if alias.partition(" ")[0] in siblings:
        return f"unknown field; did you mean {alias}?"
    if near := nearest(name, siblings):
        return f"unknown field; did you mean {near}?"
    if homes := [other for other, names in sections.items() if name in names]:
        return (
            f"unknown field; {name} belongs under {' or '.join(filter(None, homes)) or 'the top'}"
        )
    for other, names in sections.items():
        if other and (near := nearest(name, names, cutoff=0.8)):
            return f"unknown field; did you mean {other}.{near}?"
    if len(siblings) <= MAX_LISTED:
        return f"unknown field; {choices(name, siblings)}" if siblings else "unknown field"
    return "unknown field; tvd-gen configs schema lists them all"


def reachable(loc: Path, tree: Any) -> Path:
    """The part of pydantic's location that exists in the tree (it adds the names of types)."""
    path: list[str | int] = []
    for part in loc:
        inside = isinstance(tree, dict) and part in tree
        inside = inside or (isinstance(tree, list) and isinstance(part, int) and part < len(tree))
        if not inside:
            break
        tree = tree[part]
        path.append(part)
    return tuple(path)


def to_faults(
    errors: Iterable[ErrorDetails], tree: Any, sections: Mapping[str, Sequence[str]]
) -> list[Fault]:
    """One fault for each path; the branches of a union are joined by `or`."""
    texts: dict[Path, list[str]] = {}
    for error in errors:
        if error["type"] == "too_short" and error["input"]:
            continue  # pydantic counts only the items that are right
        path = reachable(error["loc"], tree)
        if error["type"] == "missing":
            path = (*path, error["loc"][-1])
            text = missing_text(path[:-1], str(path[-1]))
        elif error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            text = unknown_text(path, sections)
        else:
            text = fault_text(error)
        texts.setdefault(path, []).append(text)
    return [Fault(path, _joined(found)) for path, found in texts.items()]


def _joined(texts: list[str]) -> str:
    """`must be text, got 3` and `must be a list, got 3` -> `must be text or a list, got 3`."""
    heads = list(dict.fromkeys(text.partition(", got ")[0] for text in texts))
    tail = texts[0].partition(", got ")[2]
    if len(heads) == 1 or not all(head.startswith("must be ") for head in heads):
        return texts[0]
    wanted = " or ".join(head.removeprefix("must be ") for head in heads)
    return f"must be {wanted}, got {tail}"
