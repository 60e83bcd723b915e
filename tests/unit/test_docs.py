"""The pages that people read: what they link to is there, and the commands that they name exist."""

import re
from pathlib import Path

import click
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


def _leaves(group: click.Group, before: str = "") -> dict[str, click.Command]:
    leaves: dict[str, click.Command] = {}
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        below = _leaves(command, f"{name} ") if isinstance(command, click.Group) else {name: command}
        leaves |= {f"{before}{each}": found for each, found in below.items()}
    return leaves


def test_what_each_command_prints_as_json_is_written_down() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    section = page.partition("\n## JSON\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    excepted = next(line for line in section.splitlines() if "take no `--json`" in line)
    without = set(re.findall(r"`([a-z]+)`", excepted.partition(" take no ")[0]))
    commands = {
        name: any("--json" in parameter.opts for parameter in command.params) for name, command in _leaves(cli).items()
    }
    assert {name for name, prints_json in commands.items() if not prints_json} == without
    assert described == {name for name, prints_json in commands.items() if prints_json} | {"logs --boot"}
