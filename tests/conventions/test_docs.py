"""README and docs tell the truth: a claim that a reader disproves is worse than none."""

import ast
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from deploy.local.pictures import SHOWN as PICTURES
from receiver.translate import mapping
from shared.identity import hash_id
from support.mapping_table import table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
README = PAGES[0].read_text()
GUARANTEES = (ROOT / "docs/guarantees.md").read_text()
MAPPING = (ROOT / "docs/mapping.md").read_text()


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """A runbook is opened at night; its links must work then."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_picture_is_shown_somewhere_and_small() -> None:
    """A clone carries them for ever."""
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", page.read_text())
    }
    pictures = set((ROOT / "docs/images").iterdir())
    assert {picture.stem for picture in pictures} == set(PICTURES)
    assert pictures == shown
    assert all(20_000 < picture.stat().st_size < 300_000 for picture in pictures)


def test_every_promise_names_a_test_that_exists() -> None:
    """A guarantee without a test is a hope."""
    tables = GUARANTEES.split("Each link, its setting")[1].split("\n## ")[0]
    heads = ("| link,", "| link ", "| promise ")
    rows = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith(heads)]
    assert len(rows) >= 20
    for row in rows:
        path, names = re.search(r"\]\(\.\./(tests/\S+\.py)\)", row), re.findall(r"`(test_\w+)`", row)
        assert path, row
        assert names, row
        tree = ast.parse((ROOT / path.group(1)).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert set(names) <= defined, row


def test_the_page_of_the_mapping_shows_it() -> None:
    """Senders set attributes by this table; a wrong name is an empty column."""
    shown = [line for line in MAPPING.splitlines() if line.startswith("|")]
    assert shown == table(), "\n".join(table())
    for name in {key.decode() for key in mapping.deciding_keys(infer_events=True)}:
        assert name in MAPPING, name


def test_the_readme_names_every_table_and_stays_short() -> None:
    """It is what a newcomer reads before anything runs."""
    section = README.split("## What becomes an event")[1].split("\n## ")[0]
    assert [each.name for each in mapping.TABLES if f"`{each.name}`" not in section] == []
    assert len(README.splitlines()) <= 125


def test_every_make_target_that_a_page_names_exists() -> None:
    """The first command of a newcomer must not fail."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z][a-z-]+)\b(?=`|\s+#)", page.read_text())}
    assert named
    assert named <= targets


def test_the_typescript_of_the_page_gives_our_hash() -> None:
    """Frontends hash by it; a person must be one person in both."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, and a user needs it only to run this snippet")
    [snippet] = re.findall(r"```typescript\n(.*?)```", (ROOT / "docs/from-the-original.md").read_text(), re.DOTALL)
    plain = snippet.replace(": string", "").replace(": Promise<string>", "")
    script = plain + 'Promise.all(["42", "ä@b"].map(hashId)).then((all) => console.log(all.join(" ")));'
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [hash_id("42"), hash_id("ä@b")]


def test_nothing_tracked_names_this_machine_or_a_registry() -> None:
    """Locks and notes that are generated here must work elsewhere."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert len(paths) > 50
    # Put together from parts, so that this file holds none of it either.
    options = "|".join("--" + name for name in ("(?:extra-)?index-url", "find-links"))
    address, home = r"https?:{}[^ \"']+/{}\b".format("//", "simple"), r"/{}/\.".format("root")
    tell_tales = re.compile(f"{options}|{address}|{home}".encode())
    found = [path for path in paths if tell_tales.search(path.read_bytes())]
    assert found == []


def test_the_glossary_is_short_and_in_order() -> None:
    """More words than forty are a language of one's own."""
    words = re.findall(r"^\| ([a-z ]+) \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)[1:]
    assert words == sorted(words)
    assert 30 <= len(words) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_ours_that_a_page_names_exists(page: Path) -> None:
    """A reader looks for it at once; in a diff it may be new."""
    text = re.sub(r"^```(diff|sh)\n.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = set(
        re.findall(
            r"\b((?:receiver|consumer|shared|viewer|native|bench|deploy|tests)/[\w/.-]+\.(?:py|rs|sh|sql))\b", text
        )
    )
    named |= {f"receiver/{name}" for name in re.findall(r"\[\"((?:serve|translate|publish)/\w+\.py)", text)}
    named |= {f"consumer/{name}" for name in re.findall(r"\[\"((?:pipeline|store)/\w+\.py)", text)}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_readme_says_what_it_is_before_how_it_works() -> None:
    """A newcomer decides within five lines, and then wants the two commands."""
    positions = [README.index(text) for text in ("hashed before anything is stored", "make run", "## What is promised")]
    assert all(earlier < later for earlier, later in pairwise(positions))
    assert positions[1] < 3_500
