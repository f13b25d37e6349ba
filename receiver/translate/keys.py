"""key -> whether its value may be stored, and under which name. Pure.

A key is split into words. A word is judged without digits and without its plural, and as the beginning or end of a
compound in one case: `password1`, `tokens`, `csrftoken`, `phonenumber`.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from receiver.translate.attributes import decoded, without_nul
from receiver.translate.mapping import VERSION_KEY
from receiver.translate.redaction.normal import normal_form
from receiver.translate.redaction.privacy import Addresses, SecretRule, clean

KEY_CHARS_MAX = 128
# At most 128 characters of a key are stored. More are judged, so that a secret word across that end is found. In an
# even longer key, the letters of a secret word anywhere are enough.
_KEY_CHARS_JUDGED = 256

_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NOT_WORD = re.compile(r"[^A-Za-z0-9]+")
_DIGITS = re.compile("[0-9]+")
# Secret as a word, and at the beginning or end of a longer one.
_SECRET_PARTS = (
    *("password", "passwd", "passphrase", "passcode", "pwd", "token", "secret", "apikey", "accesskey", "privatekey"),
    *("authorization", "cookie", "credential", "email", "ssn", "jwt", "cvv", "cvc", "iban", "phone"),
    *("cardnumber", "creditcard", "debitcard"),
)
_SECRET_WORDS = frozenset({*_SECRET_PARTS, "otp"})
# Secret only as the last word: `auth_method`, `card_type` and `mobile_os` hold no secret.
_SECRET_AT_THE_END = frozenset({"card", "mobile", "pin", "auth", "oauth"})
_SECRET_COMPOUND = re.compile(
    r"(?:user|my|card|sim)?(?:otp|pin|auth)(?:code|number|no|key|header|data|value)|(?:user|my|card|sim)pin"
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
        ("mobile", "number"),
        *(("pin", "code"), ("pin", "number"), ("auth", "code"), ("auth", "key"), ("auth", "header")),
        ("pass", "phrase"),
        ("pass", "word"),
        ("pass", "code"),
    }
)
# Words that begin or end like a secret word, and are harmless.
_INNOCENT = re.compile("tokeni[sz]|secretar|email(?:ed|ing|er)$|phon(?:eme|etic)|.*(?:micro|head|ear|i|smart)phone$")
_SUSPECT_LETTERS = tuple(word.encode() for word in sorted({*_SECRET_WORDS, "key", "mail", "card", "mobile", "pass"}))
_MEASURE_WORDS = frozenset({"count", "total", "usage", "used", "limit", "max", "min", "length", "cost", "tokens"})


class Key(NamedTuple):
    """What follows from a key alone: the name to store, and whether its value may be stored."""

    shown: str  # the name to store, redacted or truncated
    rule: SecretRule | None  # why it is redacted
    is_cut: bool
    is_secret: bool  # its value is dropped, but for booleans
    is_measure: bool  # and but for numbers
    addresses: Addresses


def read_key(raw: bytes) -> Key:
    text = without_nul(decoded(raw[: 4 * _KEY_CHARS_JUDGED])[:_KEY_CHARS_JUDGED])
    is_long = len(text) >= _KEY_CHARS_JUDGED
    words = [] if is_long else words_of(normal_form(text))
    cleaned = clean(text)
    return Key(
        shown=cleaned.text[:KEY_CHARS_MAX],
        rule=cleaned.rule,
        is_cut=cleaned.lost_query or len(cleaned.text) > KEY_CHARS_MAX,
        is_secret=_is_suspect(raw) if is_long else _is_secret(words),
        is_measure=not _MEASURE_WORDS.isdisjoint(words),
        addresses="none" if text == VERSION_KEY else "v6" if words[-1:] == ["version"] else "all",
    )


def words_of(key: str) -> list[str]:
    """`APIKey.user_id2` -> api, key, user, id2."""
    return [word.lower() for word in _words(key)]


def _words(key: str) -> Iterable[str]:
    return filter(None, _NOT_WORD.split(_CASE_CHANGE.sub(" ", key)))


def _is_secret(words: list[str]) -> bool:
    bare = [word for word in map(_singular, words) if word]
    return (
        any(map(_is_secret_word, bare))
        or not _SECRET_AT_THE_END.isdisjoint(bare[-1:])
        or not _SECRET_PAIRS.isdisjoint(pairwise(bare))
    )


def _singular(word: str) -> str:
    """The word without digits, and without the `s` of a plural."""
    word = _DIGITS.sub("", word)
    return word[:-1] if len(word) > 3 and word[-1] == "s" != word[-2] else word


def _is_secret_word(word: str) -> bool:
    if word in _SECRET_WORDS or _SECRET_COMPOUND.fullmatch(word):
        return True
    return (word.startswith(_SECRET_PARTS) or word.endswith(_SECRET_PARTS)) and not _INNOCENT.match(word)


def _is_suspect(raw: bytes) -> bool:
    """Whether a key that is too long to be split into words may hold a secret one."""
    lower = raw.lower()
    return any(letters in lower for letters in _SUSPECT_LETTERS)
