"""The part of helm's language that our chart uses, rendered: values, if, if not, range, and seven functions.

An expression outside of it is an error, so the chart cannot grow beyond what the tests read.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "deploy/helm/telemetry-processor"


def rendered(**values: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The chart's manifests by (kind, name); `values` replace top-level parts of values.yaml, maps key by key."""
    given = merged(yaml.safe_load((CHART / "values.yaml").read_text()), values)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    scope = {"Values": given, "Chart": {"AppVersion": chart["appVersion"]}}
    texts = [render(path.read_text(), scope) for path in sorted((CHART / "templates").glob("*.yaml"))]
    manifests = [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {name: merged(base.get(name), over.get(name, base.get(name))) for name in base | over}
    return over


def render(template: str, scope: dict[str, Any]) -> str:
    parts = re.split(r"(\s*\{\{- .+? \}\}|\{\{ .+? \}\})", template)
    text, rest = _block(parts, scope)
    assert rest == []
    return text


def _block(parts: list[str], scope: dict[str, Any], *, is_shown: bool = True) -> tuple[str, list[str]]:
    """Text up to the block's `end` or the template's; what is behind it."""
    text = ""
    while parts:
        part, *parts = parts
        body = re.fullmatch(r"\s*\{\{-? (.+?) \}\}", part, re.DOTALL)
        if body is None:
            text += part
        elif body[1] == "end":
            return (text if is_shown else ""), parts
        elif condition := re.fullmatch(r"if (not )?(\S+)", body[1]):
            is_met = bool(_value(condition[2], scope)) is not bool(condition[1])
            inner, parts = _block(parts, scope, is_shown=is_met)
            text += inner
        elif loop := re.fullmatch(r"range (\$\w+), (\$\w+) := (\S+)", body[1]):
            behind = parts
            for name, value in sorted(_value(loop[3], scope).items()):
                inner, behind = _block(parts, {**scope, loop[1]: name, loop[2]: value})
                text += inner
            parts = behind
        else:
            text += str(_expression(body[1], scope))
    return text, []


def _expression(body: str, scope: dict[str, Any]) -> Any:
    first, *pipes = body.split(" | ")
    value = _call(first, scope)
    for pipe in pipes:
        value = _call(f"{pipe} _", {**scope, "_": value})
    return value


def _call(call: str, scope: dict[str, Any]) -> Any:
    match call.split():
        case [name]:
            return _value(name, scope)
        case ["toYaml", name]:
            return yaml.safe_dump(_value(name, scope), default_flow_style=False).rstrip()
        case ["toJson", name]:
            return json.dumps(_value(name, scope), sort_keys=True, separators=(",", ":"))
        case ["sha256sum", name]:
            return hashlib.sha256(_value(name, scope).encode()).hexdigest()
        case ["quote", name]:
            return json.dumps(str(_value(name, scope)))
        case ["nindent", width, name]:
            return "".join("\n" + " " * int(width) + line for line in _value(name, scope).splitlines())
        case ["default", other, name]:
            return _value(name, scope) or _value(other, scope)
        case _:
            raise AssertionError(f"the chart uses what this renderer does not know: {call}")


def _value(name: str, scope: dict[str, Any]) -> Any:
    if name.startswith('"'):
        return json.loads(name)
    if not name.startswith("."):
        return scope[name]
    found: Any = scope
    for part in name[1:].split("."):
        found = found.get(part)
    return found
