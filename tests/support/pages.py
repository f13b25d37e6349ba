"""Code that stands on a page of the documentation, as it stands there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SENDING = (ROOT / "docs/send-your-spans.md").read_text()
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str, page: str = SENDING) -> str:
    """The only block of this language that holds the text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    [found] = [text for spoken, text in blocks if spoken == language and containing in text]
    return found
