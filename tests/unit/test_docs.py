"""The pages that people read: what they link to is there, and the commands that they name exist."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_the_commands_that_pages_name_exist() -> None:
    named = {
        name
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"^(?:\$ )?(?:\.venv/bin/)?taskrunner ([a-z]+)\b", page.read_text(), re.MULTILINE)
    }
    assert named
    for name in sorted(named):
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0, name
