"""docs/privacy.md says exactly what passes: an officer decides by it what must be kept out at the source."""

import re
from pathlib import Path

import pytest

from support.encoding import LOGIN, outcome

PAGE = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| `([^`]+)` \|$", PAGE.split("**What passes**")[1].split("\nAlso:")[0], re.MULTILINE)


@pytest.mark.parametrize(("what", "example"), ROWS)
def test_what_the_page_says_passes_does_pass(what: str, example: str) -> None:
    """A rule that comes to catch it makes the page wrong, which is to be read by whoever changes the rule."""
    found = outcome({**LOGIN, "user.id": "user-4711", "organization.id": "u17", "metadata.note": example})
    assert found.event_metadata == {"note": example}, what  # type: ignore[union-attr]


def test_the_page_has_examples() -> None:
    """The table is found at all."""
    assert len(ROWS) >= 15


@pytest.mark.parametrize("example", ["bob&#64;example.org", "bob%2540example.org"])
def test_what_the_page_says_is_found_is_found(example: str) -> None:
    """The examples of the normal form."""
    assert f"`{example}`" in PAGE
    assert outcome({**LOGIN, "metadata.note": example}).event_metadata == {"note": "[redacted]"}  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["password1", "csrftoken", "phonenumber"])
def test_keys_that_the_page_names_are_secret(key: str) -> None:
    """The examples of words of keys."""
    assert f"`{key}`" in PAGE
    assert outcome({**LOGIN, f"metadata.{key}": "x"}).event_metadata == {}  # type: ignore[union-attr]
