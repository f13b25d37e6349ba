"""Another mapping, made up from a seed: does the native engine still say what the reference says?

    python tests/support/other_mapping.py SEED REQUESTS

A process of its own, because modules read the mapping once, when they are imported. The sources of shared/events.py
and receiver/translate/mapping.py are run with other event models, columns, keys, limits and tables in them.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

WORDS = ("plan", "team", "score", "region", "device", "variant", "origin", "channel")
TEXTS = ("export", "pro", "a b", "café", 'say "hi"', "x" * 60, "2024-05-01", "beta_7", "https://h.example/a?b=c")
PATHS = ("/orders/17", "/a/{id}/b", "/health", "/users/0af76519-16cd-43dd-8448-eb211c80319c", "/x%20y", "?q=1")


def models_source(generator: random.Random, source: str) -> str:
    """The events with fields left out, added, in another order and with other limits, and perhaps a new table."""
    head, _, rest = source.partition("class UserActivity(BaseEvent):")
    _, union, tail = rest.partition("ProductEvent = ")
    own = {
        "user_activity": {"event_type": "Text50", "session_id": "Text255 | None", "user_id": "Text32"},
        "endpoint_usage": {
            "endpoint": "Text255",
            "method": "Text32 | None",
            "status_code": "Annotated[int, Field(ge=0, le=999)] | None",
            "duration_ms": "Duration | None",
        },
        "feature_usage": {"feature_name": "Text100", "action": "Text100 | None"},
        "model_usage": {
            "operation": "Text50",
            "model": "Text255 | None",
            "input_tokens": "Tokens | None",
            "output_tokens": "Tokens | None",
            "duration_ms": "Duration | None",
            "error_type": "Text100 | None",
        },
    }
    if generator.random() < 0.7:
        own["page_view"] = {"feature_name": "Text100", "endpoint": "Text255 | None", "session_id": "Text255 | None"}
    if generator.random() < 0.4:
        del own[generator.choice(["user_activity", "feature_usage", "model_usage"])]
    names = list(own)
    generator.shuffle(names)
    classes = []
    for name in names:
        fields = {field: kind for field, kind in own[name].items() if "None" not in kind or generator.random() < 0.8}
        fields |= {column: kind for column, kind in ADDED.items() if generator.random() < 0.5}
        fields["event_metadata"] = "dict[str, Any]"
        order = list(fields)
        generator.shuffle(order)
        lines = [f"    {field}: {fields[field]}{' = None' if 'None' in fields[field] else ''}" for field in order]
        version = [f'    schema_version: Literal[2] = 2\n    table: Literal["{name}"] = "{name}"']
        classes.append("\n".join([f"class {class_of(name)}(BaseEvent):", *version, *lines]))
    tail = tail[tail.index("Event = Annotated[") :]
    tail = tail.replace(
        tail[tail.index("Table = Literal[") : tail.index("\n\nEVENT_MODELS")], f"Table = Literal{names}"
    )
    for limit in ("50", "100"):
        head = head.replace(f"max_length={limit})", f"max_length={generator.choice((12, 40, 200))})")
    return head + "\n\n".join([*classes, f"{union}{' | '.join(map(class_of, names))}\n{tail}"])


ADDED = {
    "plan": "Annotated[str, Field(max_length=12)] | None",
    "score": "Annotated[int, Field(ge=-5, le=1000)] | None",
    "account_id": "Text32 | None",
    "visit_id": "Text255 | None",
    "verb": "Annotated[str, Field(max_length=10)] | None",
    "screen": "Text255 | None",
}


def class_of(table: str) -> str:
    return "".join(part.title() for part in table.split("_"))


def change_mapping(generator: random.Random, names: dict[str, Any], events: ModuleType) -> None:
    """Columns and tables of the namespace, for those events: keys added, removed and in another order."""
    column, key = names["Column"], names["Key"]
    columns = {each.name: each for each in names["COLUMNS"]}
    columns |= {
        "plan": column("plan", names["Text"](), (key(b"plan.name"), key(b"plan"))),
        "score": column("score", names["Integer"](-5, 1000), (key(b"score"),)),
        "account_id": column("account_id", names["HashedId"](), (key(b"account.id"),), is_shared_by_trace=True),
        "visit_id": column("visit_id", names["SessionText"](), (key(b"visit.id"),)),
        "verb": column("verb", names["Token"](), (key(b"verb"),)),
        "screen": column(
            "screen",
            names["PathTemplate"](),
            (key(b"screen.path", names["Form"].PATH), key(b"screen", names["Form"].ROUTE)),
        ),
    }
    for name, old in columns.items():
        if not old.keys:
            continue
        keys = list(old.keys)
        if len(keys) > 1 and generator.random() < 0.4:
            keys.pop(generator.randrange(len(keys)))
        if generator.random() < 0.4:
            form = old.keys[0].form
            keys.append(key(f"{generator.choice(WORDS)}.{name}".encode(), form))
        generator.shuffle(keys)
        is_shared = old.is_shared_by_trace and generator.random() < 0.7
        columns[name] = column(name, old.read, tuple(keys), old.otherwise, is_shared)
    used = {field for model in events.EVENT_MODELS for field in model.model_fields}
    names["COLUMNS"] = tuple(each for each in columns.values() if each.name in used)
    names["BY_NAME"].clear()
    names["BY_NAME"].update({each.name: each for each in names["COLUMNS"]})
    conditions = {table.name: (table.inferred_when, table.excluded_by) for table in names["TABLES"]}
    when = names["When"]
    conditions["page_view"] = (
        (when(any_of=(b"page.viewed",)), when(any_of=(b"screen", b"plan"), all_of=(b"score",), is_server=True)),
        "",
    )
    names["TABLES"] = tuple(
        names["Table"](model, *conditions[model.model_fields["table"].default]) for model in events.EVENT_MODELS
    )


def run_source(name: str, source: str, change: Any = None) -> ModuleType:
    """A module of our own text in the place of the project's."""
    module = ModuleType(name)
    module.__file__ = f"{name} of the seed"
    sys.modules[name] = module
    first, mark, second = source.partition("# ---- what follows from it")
    exec(compile(first, name, "exec"), module.__dict__)
    if change:
        assert mark
        change(module.__dict__)
        exec(compile(second, name, "exec"), module.__dict__)
    package, _, last = name.rpartition(".")
    __import__(package)
    setattr(sys.modules[package], last, module)
    return module


def install(seed: int) -> None:
    """From here on every import in this process meets the seed's events and mapping."""
    generator = random.Random(seed)
    events = run_source("shared.events", models_source(generator, (ROOT / "shared/events.py").read_text()))
    source = (ROOT / "receiver/translate/mapping.py").read_text()
    standing = [model.__name__ for model in events.EVENT_MODELS]
    for old in ("UserActivity", "EndpointUsage", "FeatureUsage", "ModelUsage"):
        if old not in standing:  # the table is left out below; until then it needs a model
            setattr(events, old, events.EVENT_MODELS[0])
    run_source("receiver.translate.mapping", source, lambda namespace: change_mapping(generator, namespace, events))


def main(seed: int, requests: int) -> int:
    install(seed)
    from receiver.translate import mapping  # noqa: PLC0415  after the mapping is another
    from support.encoding import PLAIN, request_bytes, resource_bytes, rules  # noqa: PLC0415
    from support.engines import answers_by, engines  # noqa: PLC0415

    spans = Spans(random.Random(seed))
    why: Counter[str] = Counter()
    told = {"spans": 0, "records": 0, "internal": 0, "differ": 0}
    for number in range(requests):
        by = PLAIN if number % 3 else rules(infer_events=False, metadata_attributes=("*",))
        resource = resource_bytes([("service.namespace", "shop")])
        body = request_bytes(*((resource, [spans.next() for _ in range(20)]) for _ in range(2)))
        reference, native = engines(by)
        expected, found = answers_by(reference, body), answers_by(native, body)
        translation = native.open(body)
        while not translation.step(1.0):
            pass
        why.update(translation.declined)
        told["spans"] += 40
        told["records"] += len(expected.records)
        told["internal"] += expected.rejected["internal"]
        told["differ"] += expected != found
    tables = [table.name for table in mapping.TABLES]
    sys.stdout.write(json.dumps({**told, "declined": why, "tables": tables}) + "\n")
    return int(bool(told["differ"]))


class Spans:
    """Spans that the seed's mapping takes for events, most of them plain, some damaged."""

    def __init__(self, generator: random.Random) -> None:
        from receiver.translate import mapping  # noqa: PLC0415  the seed's
        from support.mutation import Mutator  # noqa: PLC0415

        self._mapping = mapping
        self._random = generator
        self._mutator = Mutator(generator)

    def next(self) -> bytes:
        from support.encoding import SERVER, span_bytes  # noqa: PLC0415

        draw = self._random
        found = list(self._attributes())
        made = span_bytes(
            found if draw.random() < 0.1 else dict(found),
            kind=draw.choice((1, SERVER)),
            trace_id=draw.randbytes(16),
            span_id=draw.randbytes(8),
        )
        return self._mutator.span(made) if draw.random() < 0.2 else made

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        draw = self._random
        table = draw.choice(self._mapping.TABLES)
        conditions = [name for when in table.inferred_when[:1] for name in (*when.any_of[:1], *when.all_of)]
        if draw.random() < 0.6:
            yield self._mapping.CATEGORY.decode(), table.name
        for name in conditions:
            yield name.decode(), draw.choice([*table.inferred_when[0].values[:1], *TEXTS])
        for column in table.columns:
            is_filled = bool(set(column.key_names) & set(conditions)) and draw.random() < 0.9
            if column.keys and not is_filled and (column.name in table.missing or draw.random() < 0.6):
                yield draw.choice(column.keys).name.decode(), self._value(column)
        if draw.random() < 0.5:
            yield f"metadata.{draw.choice(WORDS)}", draw.choice([*TEXTS, 5, 1.5, True])

    def _value(self, column: Any) -> Any:
        draw, mapping = self._random, self._mapping
        match column.read:
            case mapping.PathTemplate():
                return draw.choice(PATHS) if draw.random() < 0.3 else "/orders/{id}"
            case mapping.Integer():
                return draw.choice([0, 7, 200, 999, 1001, "42", "x", True])
            case mapping.Duration():
                return draw.choice([1.5, 3, "12", -1, "nan"])
            case mapping.Token():
                return draw.choice(["get", "POST", "two words"])
            case mapping.HashedId():
                return draw.choice([f"user-{draw.randrange(50)}", draw.randrange(10**9)])
        return draw.choice([*TEXTS, draw.randrange(99)]) if draw.random() < 0.1 else f"fresh-{draw.randrange(10**5)}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
