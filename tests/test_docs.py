"""The documents: links lead somewhere, generated parts are up to date, commands exist."""

import re
import subprocess
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchor(heading):
    """A heading's anchor, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Files that a page links to are there, and headings too; the world outside is not asked."""
    for target in LINK.findall(without_code(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{target} is not there"
        if fragment:
            headings = {anchor(each) for each in HEADING.findall(file.read_text())}
            assert fragment in headings, f"{file.name} has no heading #{fragment}"


@pytest.mark.parametrize("part", generate.PARTS, ids=lambda part: part.page.stem)
def test_what_is_drawn_is_up_to_date(part):
    """`make docs` draws it."""
    assert part.made_anew() == part.page.read_text()


def test_every_decision_is_listed():
    """The list of decisions names each page, under its own title."""
    folder = ROOT / "docs" / "adr"
    listed = (folder / "README.md").read_text()
    for page in folder.glob("0*.md"):
        title = page.read_text().splitlines()[0].partition(". ")[2]
        assert f"]({page.name}) | {title} |" in listed
        assert re.search(r"^Status: (accepted|superseded by)", page.read_text(), re.MULTILINE)


def test_make_targets_that_pages_name_exist():
    """Every `make X` in a page is in the Makefile, and explained by `make help`."""
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    explained = set(re.findall(r"^  make ([a-z-]+) ", told.stdout, re.MULTILINE)) | {"help"}
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"(?:`|# )make ([a-z-]+)", page.read_text()))
    assert {"demo", "down", "test"} <= named
    assert named - explained == set()


def test_commands_that_pages_name_exist():
    """Every `swarmctl COMMAND` in a page is a command, and its options are known."""
    from swarmctl.cli.main import root

    known = set(root.list_commands(None)) | {"--help", "--version"}
    pattern = re.compile(r"(?:bin/|\$ |`)swarmctl ((?:--)?[a-z]+)")
    for page in PAGES:
        for command in pattern.findall(page.read_text()):
            assert command in known, f"{page.name}: swarmctl {command}"


def test_modules_that_the_architecture_names_exist():
    """Paths with a folder or a suffix in docs/architecture.md are there."""
    text = without_code((ROOT / "docs/architecture.md").read_text())
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        candidates = (ROOT / name, ROOT / "swarmctl" / name, ROOT / "swarmctl/controller" / name)
        assert any(each.exists() for each in candidates), f"{name} is not there"
