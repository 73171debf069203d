"""What the pages tell people to type, open or look for is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cyclora_client.cli import app
from cyclora_core.environment import known_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CLIENT_VARIABLES = {"CYCLORA_URL", "CYCLORA_ADMIN_KEY"}
SOURCES = ("core", "server", "scheduler", "workers", "client")

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"(?:^|(?<!-n)[\s\"(])cyclora ([^|>;&)]+)")
INLINE = re.compile(r"`cyclora ([^`]+)`")


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of the page's shell blocks, without comments."""
    for language, block in BLOCK.findall(page.read_text()):
        if language in {"", "sh"}:
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"(^|\s)#.*$", "", line).strip()


def commands(page: Path) -> Iterator[str]:
    """What stands behind ``cyclora`` in them."""
    for line in shell_lines(page):
        if found := COMMAND.search(line):
            yield found[1].strip()


def mentions(page: Path) -> Iterator[str]:
    """The same in sentences, where arguments may be left out; ``a | b`` is one of each."""
    prose = BLOCK.sub("", page.read_text()).replace("\n", " ")
    for text in INLINE.findall(prose):
        first, *others = (part.split() for part in text.replace("...", "").split("|"))
        yield " ".join(first)
        yield from (" ".join([*first[:-1], *other]) for other in others)


def each_of(find: Any) -> list[Any]:
    found = {f"{page.name}: {text}": text for page in PAGES for text in find(page)}
    return [pytest.param(text, id=name) for name, text in found.items()]


def resolve(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        assert name in command.commands, f"no command {name!r} in {arguments}"
        command = command.commands[name]
    return command, rest


@pytest.mark.parametrize("text", each_of(commands))
def test_a_command_in_a_block_can_be_run_as_it_stands(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CYCLORA_ADMIN_KEY", "TINKER_API_KEY"):
        monkeypatch.setenv(name, "tml-key")
    monkeypatch.setenv("CYCLORA_REDIS_URL", "redis://localhost")
    (tmp_path / "RUN_weights_NAME").mkdir()
    monkeypatch.chdir(tmp_path)
    command, rest = resolve(shlex.split(text.removesuffix('"')))

    assert not hasattr(command, "commands"), f"{text} is a group of commands"
    command.make_context(command.name, rest)


@pytest.mark.parametrize("text", each_of(mentions))
def test_a_command_in_a_sentence_exists_with_its_options(text: str) -> None:
    command, rest = resolve(shlex.split(text))

    known = {name for option in command.params for name in option.opts + option.secondary_opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_the_pages_for_people_show_commands() -> None:
    shown = {page.name for page in PAGES if [*commands(page)]}

    assert {"README.md", "quickstart.md", "operating.md", "migration.md"} <= shown


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        in_blocks = [
            word for line in shell_lines(page) for word in re.findall(r"^make (\S+)", line)
        ]
        named = {*in_blocks, *re.findall(r"`make ([a-z-]+)", page.read_text())}
        assert named <= targets, page.name


def test_every_variable_that_is_named_is_one() -> None:
    named = known_names() | CLIENT_VARIABLES | {"CYCLORA_SERVER_PORT"}
    for name in ("quickstart.md", "troubleshooting.md", "security.md", "migration.md"):
        text = (DOCS / name).read_text()
        assert set(re.findall(r"\bCYCLORA_[A-Z_]*[A-Z]\b", text)) <= named, name


def test_every_page_is_in_the_index_and_the_index_in_readme() -> None:
    index = (DOCS / "README.md").read_text()
    listed = set(re.findall(r"\| \[[\w.-]+\]\(([\w.-]+\.md)\)", index))

    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in slugs, f"{path}#{anchor}"


def test_the_messages_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    code = "\n".join(path.read_text() for part in SOURCES for path in (ROOT / part).rglob("*.py"))
    # A message over several lines, as one; "..." of the page stands for what is filled in.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    prose = re.sub(r"`[^`]*`", "", (DOCS / "troubleshooting.md").read_text()).replace("\n", " ")
    quoted = re.findall(r'"([^"]+)"', prose)

    assert len(quoted) > 20
    for message in quoted:
        for part in filter(None, map(str.strip, message.split("..."))):
            assert part in code, message
