"""A Dockerfile as its stages, and what an image made of one of them runs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).parents[2] / "deploy" / "Dockerfile"

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    keyword: str
    value: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM and what follows it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list[Instruction])


@dataclass(frozen=True, slots=True)
class Image:
    """What a container of a stage would do."""

    entrypoint: Sequence[str]
    command: Sequence[str]
    environment: Mapping[str, str]
    healthcheck: Sequence[str]
    user: str
    ports: Sequence[int]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    arguments: Mapping[str, str]
    """Those before the first stage, with their defaults."""
    stages: Mapping[str, Stage]

    def bases(self, target: str, arguments: Mapping[str, str]) -> list[Stage]:
        """A stage and those it is made from, the first one first."""
        stage = self.stages.get(_filled(target, {**self.arguments, **arguments}))
        return [*self.bases(stage.base, arguments), stage] if stage else []

    def image(self, target: str, arguments: Mapping[str, str] | None = None) -> Image:
        """What an image of this target would run."""
        stages = self.bases(target, arguments or {})
        if not stages:
            raise KeyError(f"deploy/Dockerfile has no stage {target!r}")
        last: dict[str, str] = {}
        environment: dict[str, str] = {}
        ports: list[int] = []
        for each in (i for stage in stages for i in stage.instructions):
            last[each.keyword] = each.value
            if each.keyword == "ENV":
                environment |= dict(pair.split("=", 1) for pair in shlex.split(each.value))
            if each.keyword == "EXPOSE":
                ports.append(int(each.value))
        check = last["HEALTHCHECK"]
        return Image(
            entrypoint=json.loads(last["ENTRYPOINT"]),
            command=json.loads(last["CMD"]),
            environment=environment,
            healthcheck=json.loads(check[check.index("CMD ") + 4 :]),
            user=last["USER"],
            ports=ports,
        )


def read(file: Path = FILE) -> Dockerfile:
    """Parse a Dockerfile of the kind that this one is: no heredocs, no other escape."""
    # Docker leaves comments out before it joins lines.
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for text in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not text.strip():
            continue
        keyword, value = text.strip().split(maxsplit=1)
        if keyword == "FROM":
            base, _, name = value.split()
            stage = stages[name] = Stage(name, base)
        elif stage is not None:
            stage.instructions.append(Instruction(keyword, value))
        else:
            assert keyword == "ARG", f"{text!r} before the first FROM"
            name, _, default = value.partition("=")
            arguments[name] = default
    return Dockerfile(arguments, stages)


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: variables[found[1] or found[2]], text)
