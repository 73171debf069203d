"""Environments that hold a wheel and what it requires, and nothing else that is installed here.

What it requires is linked from the environment of the tests: nothing is downloaded, and a package
that no requirement leads to is not there, as in an image.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.metadata import parse_email
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def linked_venv(folder: Path, wheel: Path, extra: str | None = None) -> Path:
    """The Python of an environment with a wheel, with one of its extras or none.

    Raises:
        PackageNotFoundError: something that it requires is not installed here.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    link(required_by(wheel, extra), packages)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True, timeout=60)
    return python


def required_by(wheel: Path, extra: str | None) -> list[Distribution]:
    """What is installed here of a wheel's requirements, and of theirs."""
    found: dict[str, Distribution] = {}
    waiting = [(text, extra or "") for text in _requirements(wheel)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        text, for_extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": for_extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = distribution(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(each, wanted) for each in found[name].requires or ()]
    return list(found.values())


def _requirements(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        [name] = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        raw, _ = parse_email(archive.read(name))
    return raw.get("requires_dist", [])


def link(distributions: Iterable[Distribution], packages: Path) -> None:
    """Make their files appear in another folder of packages.

    A folder that is a package is one link. One that is not may be shared by several distributions
    (``nvidia``, ``google``) and is made.
    """
    for each in distributions:
        for file in each.files or ():
            if ".." in file.parts:  # a command: bin/...
                continue
            source = Path(str(each.locate_file("")))
            target = packages
            for part in file.parts:
                source, target = source / part, target / part
                if target.is_symlink():
                    break
                is_folder = source.is_dir()
                if is_folder and not (source / "__init__.py").exists() and part != file.parts[-1]:
                    target.mkdir(exist_ok=True)
                    continue
                if source.exists():
                    target.symlink_to(source)
                break
