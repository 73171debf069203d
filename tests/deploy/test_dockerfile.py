"""deploy/Dockerfile makes small, pinned images that run as nobody in particular."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cyclora_core.environment import unknown_variables
from deploy import dockerfile
from deploy.proxy import find_program

ROOT = Path(__file__).parents[2]
TARGETS: list[tuple[str, Mapping[str, str]]] = [
    ("server", {}),
    ("scheduler", {}),
    ("worker", {"DEVICE": "cpu"}),
    ("worker", {"DEVICE": "cuda"}),
]
IGNORED = ["DL3008", "DL3008", "DL3006"]
"""Versions of Debian's packages, of which it keeps one; a base that is one of our own stages."""


@pytest.fixture
def text() -> str:
    return dockerfile.FILE.read_text()


def test_hadolint_finds_nothing() -> None:
    ran = subprocess.run(
        [find_program("hadolint"), "--no-color", str(dockerfile.FILE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert (ran.returncode, ran.stdout) == (0, "")


def test_hadolint_is_told_to_ignore_no_more_than_it_must(text: str) -> None:
    assert re.findall(r"# hadolint ignore=(\S+)", text) == IGNORED


def test_every_base_is_pinned_by_its_full_version() -> None:
    parsed = dockerfile.read()
    ours = {*parsed.stages, "torch-${DEVICE}"}
    others = {stage.base for stage in parsed.stages.values()} - ours

    assert others == {"python:3.11.14-slim-bookworm"}


def test_python_is_one_that_the_tests_run_on() -> None:
    """CI runs its tests on the oldest Python that is supported, and images have the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = dockerfile.read().stages["python"].base

    assert project["requires-python"] == f">={re.findall(r':(3[.][0-9]+)', base)[0]}"


@pytest.mark.parametrize(("target", "arguments"), TARGETS)
def test_an_image_runs_without_rights_and_says_how_it_is(
    target: str, arguments: Mapping[str, str]
) -> None:
    image = dockerfile.read().image(target, arguments)

    assert int(image.user) > 1000
    assert image.entrypoint == ["tini", "-g", "--"]
    assert image.command[:2] == ["python", "-m"]
    assert image.environment["CYCLORA_METRICS_PORT"] == "9464"
    assert "9464, timeout" in image.healthcheck[-1]
    assert 9464 in image.ports


@pytest.mark.parametrize(("target", "arguments"), TARGETS)
def test_the_user_is_set_last_before_the_command(target: str, arguments: Mapping[str, str]) -> None:
    stage = dockerfile.read().bases(target, arguments)[-1]

    assert [each.keyword for each in stage.instructions][-2:] == ["USER", "CMD"]


@pytest.mark.parametrize(("target", "arguments"), TARGETS)
def test_every_variable_of_an_image_is_a_setting(target: str, arguments: Mapping[str, str]) -> None:
    assert unknown_variables(dockerfile.read().image(target, arguments).environment) == []


def test_nothing_is_fetched_past_a_package_manager(text: str) -> None:
    keywords = {line.split()[0] for line in text.splitlines() if line and line[0].isupper()}

    assert "ADD" not in keywords
    assert "curl" not in text
    assert "wget" not in text


def test_every_package_is_pinned(text: str) -> None:
    installs = re.findall(r"pip install [^\n]*", text)

    assert installs
    for install in installs:
        pinned = "-c /constraints.txt" in install or "/wheels/" in install or "==" in install
        assert pinned, install
        assert "--no-cache-dir" in install


def test_what_builds_the_wheel_has_the_version_of_the_constraints(text: str) -> None:
    [pinned] = re.findall(r"hatchling==\S+", text)

    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_requirements_of_a_process_are_those_of_its_extra(tmp_path: Path) -> None:
    """The very line of the Dockerfile that finds them is run here."""
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    stage = dockerfile.read().stages["requirements"]
    [command] = [each.value for each in stage.instructions if each.keyword == "RUN"]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=30)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in ("server", "scheduler", "workers"):
        wanted = [*project["dependencies"], *project["optional-dependencies"][extra]]
        lines = (tmp_path / f"{extra}.txt").read_text().splitlines()
        assert [Requirement(line) for line in lines] == [Requirement(line) for line in wanted]


def test_only_what_images_are_made_of_reaches_the_builder(text: str) -> None:
    ignore = dockerfile.FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}

    assert "*" in ignore
    copied = {word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]}
    mounted = set(re.findall(r"type=bind,source=([^,]+)", text))
    assert {path.split("/")[0] for path in allowed} == copied | mounted
    for path in allowed:
        assert (ROOT / path).exists()


def test_no_secret_is_built_in(text: str) -> None:
    assert not re.search(r"(KEY|TOKEN|PASSWORD|SECRET)", text)
