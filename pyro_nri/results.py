"""What a command found, in words for a person or as JSON for a machine."""

import json
import math
from typing import Any


def as_json(result: dict[str, Any]) -> str:
    """A result as JSON, for a machine."""
    return json.dumps(_finite(result), indent=2, allow_nan=False)


def in_words(result: dict[str, Any]) -> str:
    """A result as lines for a person: a name, a value, an interval if there is one."""
    lines = []
    for name, value in result.items():
        label = name.replace("_", " ")
        if isinstance(value, dict) and "value" in value:
            lines.append(f"{label:28} {_with_interval(value)}")
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            lines.append("\n".join(f"{label if i == 0 else '':28} {item}" for i, item in enumerate(value)))
        elif isinstance(value, list):
            lines.append(f"{label:28} {', '.join(_plain(item) for item in value) or 'none'}")
        elif isinstance(value, dict):
            continue  # for machines: --json has it
        else:
            lines.append(f"{label:28} {_plain(value)}")
    return "\n".join(lines)


def _with_interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return f"unknown: {value.get('reason', 'there is nothing to score')}"
    text = _plain(value["value"])
    return text if value["low"] is None else f"{text}  [{_plain(value['low'])}, {_plain(value['high'])}]"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "none" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value) or math.isnan(value):
        return str(value)
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"


def _finite(value: Any) -> Any:
    """JSON has no infinity: it becomes the string "inf"."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
