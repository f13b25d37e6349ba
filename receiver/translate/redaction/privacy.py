"""text -> the text that may be stored; key -> whether its value may be. Pure.

Everything here is linear in the length of the text, for any text: a pattern starts at a literal or at the
edge of a run, and never tries a run again from its middle (`++` and `(?>...)` do not backtrack).
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

from receiver.translate.redaction.normal import normal_form

REDACTED = "[redacted]"

# Which addresses count as secrets: a version number looks like IPv4.
Addresses = Literal["all", "v6", "none"]
SecretRule = Literal[
    "email", "jwt", "bearer_token", "known_key_format", "private_key", "card_number", "url_user_info", "ip_address"
]

# A longer text is truncated to this length before it is judged; at most 1,024 characters are stored.
JUDGED_CHARS_MAX = 65_536
# Shorter than the shortest card number, and only letters and digits: no rule below can match.
_HARMLESS_CHARS_MAX = 12
# Nothing but a card number can be in this.
_HEX_ID = re.compile("[0-9a-f-]{1,64}")
# A text with more near misses than this is redacted: otherwise a sender could make near misses cost seconds.
_CANDIDATES_MAX = 1000


# ---- secrets by value


class Cleaned(NamedTuple):
    text: str
    rule: SecretRule | None  # why it is redacted
    lost_query: bool


def clean(text: str, addresses: Addresses = "all") -> Cleaned:
    """The text without a URL's query and fragment, or `[redacted]` when what is left holds a secret.

    The text is judged as it is and in its normal form, and stays as it is when no rule matches either form. Characters
    after the first JUDGED_CHARS_MAX are dropped unread.
    """
    if _is_harmless(text):
        return Cleaned(text, None, lost_query=False)
    text = text[:JUDGED_CHARS_MAX]
    normal = normal_form(text)
    if _has_user_info(text) or _has_user_info(normal):  # first: the password may hold a `?`
        return Cleaned(REDACTED, "url_user_info", lost_query=False)
    rest = without_query(text)
    if rest == text and normal != text and (plain := without_query(normal)) != normal:
        rest = plain
    rule = _rule_of(rest, normal, addresses) if rest == text else secret_in(rest, addresses)
    lost_query = rest != text
    return Cleaned(REDACTED if rule or (lost_query and not rest) else rest, rule, lost_query)


def has_card(number: float) -> bool:
    """Whether an int or a double is a card number."""
    return float(number).is_integer() and _CARD_MIN_VALUE <= number <= _CARD_MAX_VALUE and _has_card(str(int(number)))


def without_query(text: str) -> str:
    """Ends the text before the first query, parameter or fragment of a URL, because the rest may belong to it."""
    ends = [len(text)]
    if "://" in text and (found := _URL_QUERY.search(text)):
        ends.append(found.end() - 1)
    if found := _NAMED_PART.search(text):
        ends.append(found.start())
    return text[: min(ends)]


def secret_in(text: str, addresses: Addresses = "all") -> SecretRule | None:
    """The rule that matches the text, as it is or in its normal form; None when no rule does."""
    return None if _is_harmless(text) else _rule_of(text, normal_form(text), addresses)


def _rule_of(text: str, normal: str, addresses: Addresses) -> SecretRule | None:
    rule = _secret_in(text, addresses)
    return rule if rule is not None or normal == text else _secret_in(normal, addresses)


def _is_harmless(text: str) -> bool:
    """A cheap test for the most frequent texts: short words, and hexadecimal ids such as those of sessions."""
    if len(text) <= _HARMLESS_CHARS_MAX and text.isalnum() and text.isascii():
        return True
    return _HEX_ID.fullmatch(text) is not None and not _has_card(text)


def _has_user_info(text: str) -> bool:
    return "://" in text and _USER_INFO.search(text) is not None


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
# `?name=`, `;name=` and `#name=`, but not the parameters of a media type.
_NAMED_PART = re.compile(r"[?;#](?!(?:charset|boundary|q)=)(?=[\w.~%\[\]-]{1,64}=)")

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
    *((f"gh{kind}_", "known_key_format", re.compile(rf"gh{kind}_[A-Za-z0-9]{{20}}")) for kind in "pousr"),  # GitHub
    ("github_pat_", "known_key_format", re.compile(r"github_pat_\w{20}")),
    ("xox", "known_key_format", re.compile(r"xox[a-z]-[\w-]{8}")),  # Slack
    ("xapp-", "known_key_format", re.compile(r"xapp-[\w-]{8}")),
    ("hooks.slack.com", "known_key_format", re.compile(r"hooks\.slack\.com/services/\w")),
    ("k_live_", "known_key_format", re.compile(r"[srp]k_live_[A-Za-z0-9]{10}")),  # Stripe
    ("k_test_", "known_key_format", re.compile(r"[srp]k_test_[A-Za-z0-9]{10}")),
    ("whsec_", "known_key_format", re.compile(r"whsec_[A-Za-z0-9]{16}")),
    ("sk-", "known_key_format", re.compile(r"sk-(?<![A-Za-z0-9]sk-)[\w-]{16}")),  # OpenAI and its likes
    ("PRIVATE KEY", "private_key", re.compile(r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY")),
)
# A text without any of these literals matches no format. The native engine leaves a text with one to the reference.
LITERALS = tuple(literal for literal, _, _ in _FORMATS)
# Literals that count only when no letter or digit stands before them.
BOUNDED_LITERALS = frozenset({"sk-"})
_BEARER = re.compile(r"bearer[\s:=]++(?:[a-z0-9._~+/=-]{6}|[a-z._~+/=-]{0,5}[0-9])", re.IGNORECASE)


# ---- card numbers

_CARD_MIN, _CARD_MAX = 13, 19
_CARD_MIN_VALUE, _CARD_MAX_VALUE = 10 ** (_CARD_MIN - 1), 10**_CARD_MAX - 1
_CARD_NEAR_MISSES_MAX = 20  # one number in ten adds up by chance
_CARD_RUN = re.compile(r"(?<![0-9])[0-9](?:[ -]?[0-9]){12}(?:[ -]?[0-9])*+")
# Three or more groups of digits with the same separator between them; a decimal number has only two groups.
_SEPARATED_RUN = re.compile(r"(?<![0-9])[0-9]++(?=([^0-9A-Za-z]{1,3}+)[0-9])(?:\1[0-9]++){2,}+")
# Grouped as cards are, whatever stands between the groups.
_CARD_SHAPE = re.compile(
    r"(?<![0-9])[0-9]{4}[^0-9A-Za-z]{1,3}(?:[0-9]{4}[^0-9A-Za-z]{1,3}[0-9]{4}[^0-9A-Za-z]{1,3}[0-9]{1,7}"
    r"|[0-9]{6}[^0-9A-Za-z]{1,3}[0-9]{4,5})(?![0-9])"
)
_NOT_DIGITS = re.compile("[^0-9]+")
_ISSUERS = re.compile(  # Visa, Mastercard, Amex, Discover, Diners, JCB, UnionPay, Maestro
    r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|6011|64[4-9]|65|30[0-5]|309|36|3[89]"
    r"|352[89]|35[3-8]|62|50|5[6-8]|63|67"
)


def _has_card(text: str) -> bool:
    """Whether the text holds whole groups of 13 to 19 digits with a card's prefix and check digit."""
    starts = near_misses = 0
    for groups in _digit_groups(text):
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


def _digit_groups(text: str) -> Iterator[list[str]]:
    for run in _CARD_RUN.finditer(text):
        yield re.split("[ -]", run[0], maxsplit=_CANDIDATES_MAX)
    for run in _SEPARATED_RUN.finditer(text):
        yield run[0].split(run[1], maxsplit=_CANDIDATES_MAX)
    for run in _CARD_SHAPE.finditer(text):
        yield _NOT_DIGITS.split(run[0])


def _numbers(groups: list[str]) -> Iterator[str]:
    number = ""
    for group in groups:
        number += group
        if len(number) > _CARD_MAX:
            return
        if len(number) >= _CARD_MIN:
            yield number


def _luhn(number: str) -> bool:
    return (sum(map(int, number[-1::-2])) + sum(map(int, number[-2::-2].translate(_DOUBLED)))) % 10 == 0


_DOUBLED = str.maketrans("0123456789", "0246813579")  # the sum of the digits of twice the digit


# ---- addresses

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS_CHARS_MAX = 45
# The whole run must match, except that a port or the end of a sentence may follow.
_IPV4 = re.compile(rf"(?<![\w:.]){_OCTET}(?:\.{_OCTET}){{3}}(?::[0-9]{{1,5}})?[.:]*+(?![\w:.])", re.ASCII)
# A candidate has a digit, and `::` or six colons. Each candidate is then parsed.
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
