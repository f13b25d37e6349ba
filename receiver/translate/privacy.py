"""text -> the text that may be stored; key -> whether its value may be. Pure.

Everything here is linear in the length of the text, for any text: a pattern starts at a literal or at the
edge of a run, and never tries a run again from its middle (`++` and `(?>...)` do not backtrack).
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Literal, NamedTuple
from urllib.parse import unquote

from receiver.translate.attributes import decoded, without_nul
from receiver.translate.memo import remembered

REDACTED = "[redacted]"

# Which addresses count as secrets: a version number looks like IPv4.
Addresses = Literal["all", "v6", "none"]
SecretRule = Literal[
    "email", "jwt", "bearer_token", "known_key_format", "private_key", "card_number", "url_user_info", "ip_address"
]

KEY_CHARS_MAX = 128

# Texts up to this length are worth remembering: they repeat. 8,192 of them are at most 8 MiB.
_MEMO_CHARS_MAX = 128
_MEMO_TEXTS = 8192
# Texts are judged up to here, and end here: the longest that is stored has 1,024 characters.
JUDGED_CHARS_MAX = 65_536
_UNQUOTED_CHARS_MAX = 16_384
# Of a key, 128 characters are stored. What is judged beyond them is what a secret needs to show itself; in
# a key that is longer still, the letters of a secret word are enough, wherever they stand.
_KEY_CHARS_JUDGED = 256
# Shorter than the shortest card number, and all letters and digits: nothing below can be in it.
_HARMLESS_CHARS_MAX = 12
# Nothing but a card number can be in this.
_HEX_ID = re.compile("[0-9a-f-]{1,64}")
# A text with more near misses than this is taken for a hit; else near misses could be made to cost seconds.
_CANDIDATES_MAX = 1000


# ---- secrets by value


class Cleaned(NamedTuple):
    text: str
    rule: SecretRule | None  # why it is redacted
    lost_query: bool


def clean(text: str, addresses: Addresses = "all") -> Cleaned:
    """The text without a URL's query and fragment, or `[redacted]` when what is left holds a secret.

    Of a text of more than JUDGED_CHARS_MAX the rest is left out, unread.
    """
    if _is_harmless(text):
        return Cleaned(text, None, lost_query=False)
    return _clean(text[:JUDGED_CHARS_MAX], addresses)


@remembered(entries=_MEMO_TEXTS, length_max=_MEMO_CHARS_MAX)
def _clean(text: str, addresses: Addresses) -> Cleaned:
    if "://" in text and _USER_INFO.search(text):  # first: the password may hold a `?`
        return Cleaned(REDACTED, "url_user_info", lost_query=False)
    rest = without_query(text)
    rule = secret_in(rest, addresses)
    return Cleaned(REDACTED if rule else rest, rule, lost_query=rest != text)


def without_query(text: str) -> str:
    """Ends the text before the first query or fragment of a URL; what follows may belong to it."""
    found = _URL_QUERY.search(text) if "://" in text else _PATH_QUERY.match(text)
    return text[: found.end() - 1] if found else text


def secret_in(text: str, addresses: Addresses = "all") -> SecretRule | None:
    """Which rule finds a secret in the text, as it is or percent-decoded."""
    rule = None if _is_harmless(text) else _secret_in(text, addresses)
    if rule is None and "%" in text:
        unquoted = unquote(text[:_UNQUOTED_CHARS_MAX])
        rule = None if unquoted == text else _secret_in(unquoted, addresses)
    return rule


def _is_harmless(text: str) -> bool:
    """At a glance, for what comes most: short words, and the hexadecimal ids of sessions and the like."""
    if len(text) <= _HARMLESS_CHARS_MAX and text.isalnum():
        return True
    return _HEX_ID.fullmatch(text) is not None and not _has_card(text)


def _secret_in(text: str, addresses: Addresses) -> SecretRule | None:
    for literal, rule, pattern in _FORMATS:
        if literal in text and pattern.search(text):
            return rule
    if "bearer" in text.lower() and _BEARER.search(text):
        return "bearer_token"
    if _has_card(text):
        return "card_number"
    if addresses == "all" and text.count(".") >= 3 and _IPV4.search(text):
        return "ip_address"
    if addresses != "none" and text.count(":") >= 2 and _has_ipv6(text):
        return "ip_address"
    return None


_USER_INFO = re.compile(r"://[^/\s@]*+@")
_URL_QUERY = re.compile(r"(?<![^\s?#])(?>[^\s?#]*?://[^\s?#]*+)[?#]")  # once a run, from its start
_PATH_QUERY = re.compile(r"/[^\s?#]*+\?(?=[\w.~%\[\]-]+=)")

# Literal that must be there, rule, pattern.
_FORMATS: tuple[tuple[str, SecretRule, re.Pattern[str]], ...] = (
    # One character before the @ is enough; the last label has letters, or `react@18.2.0` would be one.
    ("@", "email", re.compile(r"@(?<=[^\s@:;,/<>()\[\]=]@)(?:[\w-]++\.)+[^\W\d_]{2}")),
    ("://", "url_user_info", _USER_INFO),
    ("eyJ", "jwt", re.compile(r"(?<![A-Za-z0-9_-])(?>[A-Za-z0-9_-]*?eyJ[A-Za-z0-9_-]{8,}+)\.[A-Za-z0-9_-]")),
    ("AKIA", "known_key_format", re.compile(r"AKIA[A-Z0-9]{16}")),  # AWS
    ("ASIA", "known_key_format", re.compile(r"ASIA[A-Z0-9]{16}")),
    ("AIza", "known_key_format", re.compile(r"AIza[\w-]{30}")),  # Google
    ("ya29.", "known_key_format", re.compile(r"ya29\.[\w-]{20}")),
    ("GOCSPX-", "known_key_format", re.compile(r"GOCSPX-[\w-]{20}")),
    ("gh", "known_key_format", re.compile(r"gh[pousr]_[A-Za-z0-9]{20}")),  # GitHub
    ("github_pat_", "known_key_format", re.compile(r"github_pat_\w{20}")),
    ("xox", "known_key_format", re.compile(r"xox[a-z]-[\w-]{8}")),  # Slack
    ("xapp-", "known_key_format", re.compile(r"xapp-[\w-]{8}")),
    ("hooks.slack.com", "known_key_format", re.compile(r"hooks\.slack\.com/services/\w")),
    ("k_", "known_key_format", re.compile(r"[srp]k_(?:live|test)_[A-Za-z0-9]{10}")),  # Stripe
    ("whsec_", "known_key_format", re.compile(r"whsec_[A-Za-z0-9]{16}")),
    ("sk-", "known_key_format", re.compile(r"sk-(?<![A-Za-z0-9]sk-)[\w-]{16}")),  # OpenAI and its likes
    ("PRIVATE KEY", "private_key", re.compile(r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY")),
)
_BEARER = re.compile(r"bearer[\s:=]++(?:[a-z0-9._~+/=-]{6}|[a-z._~+/=-]{0,5}[0-9])", re.IGNORECASE)


# ---- card numbers

_CARD_MIN, _CARD_MAX = 13, 19
_CARD_NEAR_MISSES_MAX = 20  # one number in ten adds up by chance
_CARD_RUN = re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12}(?:[ -]?[0-9])*+")
_ISSUERS = re.compile(  # Visa, Mastercard, Amex, Discover, Diners, JCB, UnionPay, Maestro
    r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|6011|64[4-9]|65|30[0-5]|309|36|3[89]"
    r"|352[89]|35[3-8]|62|50|5[6-8]|63|67"
)


def _has_card(text: str) -> bool:
    """13 to 19 digits, whole groups of them, that begin and add up like a card number."""
    starts = near_misses = 0
    for run in _CARD_RUN.finditer(text):
        groups = re.split("[ -]", run[0], maxsplit=_CANDIDATES_MAX)
        for start in range(len(groups)):
            starts += 1
            if starts > _CANDIDATES_MAX:
                return True
            if not _ISSUERS.match("".join(groups[start : start + 4])):
                continue
            near_misses += 1
            if near_misses > _CARD_NEAR_MISSES_MAX or any(map(_luhn, _numbers(groups[start : start + _CARD_MAX]))):
                return True
    return False


def _numbers(groups: list[str]) -> Iterator[str]:
    number = ""
    for group in groups:
        number += group
        if len(number) > _CARD_MAX:
            return
        if len(number) >= _CARD_MIN:
            yield number


def _luhn(number: str) -> bool:
    odd, even = number[-1::-2], number[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(digit), 10)) for digit in even)) % 10 == 0


# ---- addresses

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS_CHARS_MAX = 45
# A run of its own, though a port or the end of a sentence may follow.
_IPV4 = re.compile(rf"(?<![\w:.]){_OCTET}(?:\.{_OCTET}){{3}}(?::[0-9]{{1,5}})?[.:]*+(?![\w:.])", re.ASCII)
# With a digit, and with `::` or six colons: what is left of these are near misses, judged one by one.
_IPV6_RUN = re.compile(
    r"(?<![\w:.])(?=[A-Fa-f:.]*+[0-9])(?=[0-9A-Fa-f:.]*?::|(?:[0-9A-Fa-f.]*+:){6})[0-9A-Fa-f:.]++(?!\w)"
)


def _has_ipv6(text: str) -> bool:
    for seen, run in enumerate(_IPV6_RUN.finditer(text)):
        if seen >= _CANDIDATES_MAX or is_address(run[0].rstrip("."), IPv6Address):
            return True
    return False


def is_address(text: str, version: type[IPv4Address] | type[IPv6Address]) -> bool:
    if len(text) > _ADDRESS_CHARS_MAX:
        return False
    try:
        version(text)
    except ValueError:
        return False
    return True


# ---- secrets by key

_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_WORD = re.compile(r"[^A-Za-z0-9]+")
_SECRET_WORDS = frozenset(
    {"password", "passwd", "pwd", "token", "secret", "apikey", "authorization", "cookie", "cookies", "credential"}
    | {"credentials", "email", "ssn", "jwt", "otp", "cvv", "cvc", "iban", "phone"}
)
_SECRET_PAIRS = frozenset(
    {
        ("api", "key"),
        ("access", "key"),
        ("private", "key"),
        ("e", "mail"),
        ("card", "number"),
        ("credit", "card"),
        ("debit", "card"),
    }
)
_SUSPECT_LETTERS = tuple(word.encode() for word in sorted({*_SECRET_WORDS, "key", "mail", "card"}))
_MEASURE_WORDS = frozenset({"count", "total", "usage", "used", "limit", "max", "min", "length", "cost"})


class Key(NamedTuple):
    """What a key alone says about itself and its value."""

    shown: str  # as it may be stored: redacted or cut
    rule: SecretRule | None  # why it is redacted
    is_cut: bool
    is_secret: bool  # its value is dropped, but for booleans
    is_measure: bool  # and but for numbers
    addresses: Addresses


@remembered(entries=_MEMO_TEXTS, length_max=_MEMO_CHARS_MAX)
def read_key(raw: bytes) -> Key:
    text = without_nul(decoded(raw[: 4 * _KEY_CHARS_JUDGED])[:_KEY_CHARS_JUDGED])
    is_long = len(text) >= _KEY_CHARS_JUDGED
    words = [] if is_long else words_of(text)
    cleaned = clean(text)
    return Key(
        shown=cleaned.text[:KEY_CHARS_MAX],
        rule=cleaned.rule,
        is_cut=cleaned.lost_query or len(cleaned.text) > KEY_CHARS_MAX,
        is_secret=_is_suspect(raw) if is_long else _is_secret(words),
        is_measure=not _MEASURE_WORDS.isdisjoint(words),
        addresses="none" if text == "service.version" else "v6" if words[-1:] == ["version"] else "all",
    )


def words_of(key: str) -> list[str]:
    """`APIKey.user_id` -> api, key, user, id."""
    return [word.lower() for word in _words(key)]


def _words(key: str) -> Iterable[str]:
    return filter(None, _NOT_WORD.split(_CASE_CHANGE.sub(" ", key)))


def _is_secret(words: list[str]) -> bool:
    return (
        not _SECRET_WORDS.isdisjoint(words) or words[-1:] == ["card"] or not _SECRET_PAIRS.isdisjoint(pairwise(words))
    )


def _is_suspect(raw: bytes) -> bool:
    """Whether a key that is too long to be split into words may hold a secret one."""
    lower = raw.lower()
    return any(letters in lower for letters in _SUSPECT_LETTERS)
