"""JSON as the standard has it: no NaN, no Infinity."""

import json
import math
from collections.abc import Mapping
from typing import Any


def strict(value: Any) -> Any:
    """The value with null for what JSON has no number for (nan, inf)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(each) for key, each in value.items()}
    return [strict(each) for each in value] if isinstance(value, (list, tuple)) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON text, on one line unless indented."""
    return json.dumps(
        strict(value), ensure_ascii=False, allow_nan=False, indent=indent, default=str
    )
