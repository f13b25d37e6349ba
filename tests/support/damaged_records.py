"""Records just as our encoder writes them -> records with something changed, in their bytes or in their tokens."""

import json
import random


def damaged(raw: bytes, seed: int) -> bytes:
    """With one to three places changed, in its bytes or in its tokens."""
    dice = random.Random(seed)
    for _ in range(dice.randint(1, 3)):
        raw = (_damaged_byte if dice.random() < 0.3 else _damaged_token)(raw, dice)
    return raw


def _damaged_byte(raw: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(raw) + 1)
    put = dice.choice(
        (b"", dice.randbytes(1), b'"', b"\\", b"}", b"{", b",", b" ", b"\n", b"0", b"-", b"\x00", b"\x7f")
    )
    return raw[:at] + put + raw[at + dice.randrange(2) :]


NUMBERS = ["0", "-0", "1", "-1", "00", "01", "999", "1000", "1.0", "0.0", "-0.0", "0.1", "1e2", "1E400", "1.5e-7", ".5"]
NUMBERS += [
    "5.",
    "12345678901234567890",
    "99999999999999999",
    "253402300799999999",
    "253402300800000000",
    "1_0",
    "+1",
    "٣",
    "00.5",
]
NUMBERS += ["9223372036854775808", "0.1234567890123456789", "12345678901234567.5", "NaN", "Infinity", "-Infinity"]
TEXTS = ["", "x" * 10, "x" * 11, "x" * 256, "ü" * 32, "ü" * 33, "\U0001f600" * 10, "\u2028", "\x7f", "null", "\ufeff"]
WORDS = ['"\\u0000"', '"\\u00e9"', '"\\ud800"', '"\\n"', '"a\tb"', "null", "true", "{}", "[]", '{"a":1,"a":2}', "[{}]"]
WORDS += [
    '{"a":1},"event_metadata":{"b":2}',
    '{"a":1},"x":{}',
    '{"a":1},{"b":2}',
    '{"a":{"b":NaN}}',
    '{"a":1}}',
    "{" * 3,
    '{"a":1,}',
    "{'a':1}",
]
WORDS += ['{"a":' + "[" * depth + "]" * depth + "}" for depth in (1, 196, 197, 198, 199, 200, 201)]
ID = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
WORDS += [f'"{ID.replace(part, part.upper())}"' for part in ID.split("-")]
WORDS += [f'"{ID.replace("-", "")}"', f'"{{{ID}}}"', f'"urn:uuid:{ID}"', f'"{ID[:-1]}"', f'"{ID}e"', '"user_activity"']
TOKENS = NUMBERS + WORDS + [json.dumps(text, ensure_ascii=False) for text in TEXTS]


def _damaged_token(raw: bytes, dice: random.Random) -> bytes:
    """A value replaced, or a field dropped, doubled, added or moved."""
    try:
        fields = dict(json.loads(raw))
    except (ValueError, TypeError):
        return _damaged_byte(raw, dice)
    if not fields:
        return raw
    name = dice.choice([*fields])
    parts = [(key, json.dumps(value, separators=(",", ":"), ensure_ascii=False)) for key, value in fields.items()]
    at = [*fields].index(name)
    match dice.randrange(8):
        case 0:
            del parts[at]
        case 1:
            parts.insert(dice.randrange(len(parts) + 1), parts[at])
        case 2:
            parts.insert(dice.randrange(len(parts) + 1), (dice.choice(("colour", "event_metadata", "action")), "{}"))
        case 3:
            parts.append(parts.pop(at))
        case _:
            parts[at] = name, dice.choice(TOKENS)
    text = ",".join(f'"{key}":{value}' for key, value in parts)
    return f"{{{text}}}".encode("utf-8", "surrogatepass")
