"""The mapping as docs/mapping.md shows it: a table, one row a column."""

from receiver.translate import mapping
from receiver.translate.mapping import Column, Constant, Form, Key, Setting

HEAD = ["| column | tables | from the first of these that is there |", "|---|---|---|"]


def table() -> list[str]:
    """The lines of the table."""
    return HEAD + [row(column) for column in mapping.COLUMNS]


def row(column: Column) -> str:
    name = column.name.removesuffix("_us")
    holders = [each.name for each in mapping.TABLES if column in each.columns]
    required = [each.name for each in mapping.TABLES if column.name in each.missing and column in each.columns]
    where = "all" if len(holders) == len(mapping.TABLES) else ", ".join(holders)
    needed = "" if not required else "; required" if required == holders else f"; required in {', '.join(required)}"
    return f"| `{name}` | {where} | {told(column)}{needed} |"


def told(column: Column) -> str:  # noqa: C901  a kind each
    keys = ", ".join(map(shown, column.keys))
    if column.is_shared_by_trace:
        keys += "; else that of the trace"
    match column.read:
        case mapping.EventId():
            return "a version 8 UUID from SHA-256 of trace id and span id: one span, one row"
        case mapping.TraceId():
            return "the span's trace id, as a UUID"
        case mapping.StartTime():
            return "the span's start"
        case mapping.SamplingWeight():
            return "how many spans this one stands for: from `ot=th:` in its tracestate, else 1"
        case mapping.Metadata():
            return "attributes that `METADATA_ATTRIBUTES` allows, by default `metadata.*` and a few of the service"
        case mapping.HashedId():
            return f"hash of {keys}"
        case mapping.Token():
            return f"{keys}; in upper case"
        case mapping.Duration():
            return f"{keys}; else the span's end minus its start"
    match column.otherwise:
        case Setting(name):
            return f"{keys}; else the setting `{name.upper()}`"
        case Constant(text):
            return f"{keys}; else `{text}` for a request that was served"
    return keys


def shown(key: Key) -> str:
    name = f"`{key.name.decode()}`"
    match key.form:
        case Form.ROUTE:
            return f"{name}, a SERVER span's name `METHOD /route`"
        case Form.CALL:
            return f"`{key.behind.decode()}` and {name}"
        case Form.PATH | Form.TARGET | Form.URL:
            return f"the path of {name}"
    if key.renames:
        return f"{name} ({', '.join(f'`{sent}` is `{stored}`' for sent, stored in key.renames)})"
    if key.stands_for:
        return f"{name} (`{key.stands_for[0]}` gives way to `{key.stands_for[1].decode()}`)"
    return name
