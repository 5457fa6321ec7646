"""Request parameters: Stripe's form encoding, typed access, and its complaints about what is wrong with them."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from sandbox.store import Obj, invalid


def parse_form(text: str) -> Obj:
    """`a[b][0]=x&c=y` as nested dicts and lists of strings."""
    root: Obj = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        head, *rest = name.replace("]", "").split("[")
        node, key = root, head
        for part in rest:
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise invalid("Invalid request: a parameter is both a value and a hash.", param=head, stored=False)
            node, key = child, part or str(len(child))
        node[key] = value
    return {name: _listed(value) for name, value in root.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(part) for key, part in value.items()}


def flat(params: Obj, prefix: str = "") -> Obj:
    """Filters with dotted names: `payment[type]` is `payment.type`."""
    found: Obj = {}
    for name, value in params.items():
        if isinstance(value, dict) and name != "created":
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def integer(params: Obj, name: str) -> int | None:
    value = params.get(name)
    if value in (None, ""):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise invalid(f"Invalid integer: {value}", param=name, code="parameter_invalid_integer", stored=False) from None


def flag(params: Obj, name: str, default: bool = False) -> bool:
    value = params.get(name)
    if value is None:
        return default
    if value not in ("true", "false"):
        raise invalid(f"Invalid boolean: {value}", param=name, stored=False)
    return bool(value == "true")


def require(params: Obj, name: str) -> Any:
    if params.get(name) in (None, ""):
        raise invalid(f"Missing required param: {name}.", param=name, code="parameter_missing", stored=False)
    return params[name]


def allow(params: Obj, known: set[str]) -> None:
    for name in params:
        if name not in known:
            raise invalid(f"Received unknown parameter: {name}", param=name, code="parameter_unknown", stored=False)
