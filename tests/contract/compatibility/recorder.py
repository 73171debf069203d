"""What of the SDK the running test really calls, and whether it succeeds.

The SDK's classes are wrapped when this module is imported. A call counts once it has returned, and
when it returned a future, once that future has a result: a method that a test only expects to be
refused is not exercised by it. Only calls that the tests' own code makes count, not those that the
SDK makes of itself. Commands count when they exit with 0.
"""

from __future__ import annotations

import functools
import inspect
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import tinker
from tinker.cli.__main__ import main_cli

from contract.compatibility import surface

_MARK = "_is_recorded"
_TESTS = Path(__file__).parents[2]


@dataclass
class Calls:
    """The calls of one test."""

    returned: set[str] = field(default_factory=set[str])
    futures: list[tuple[str, Future[Any]]] = field(default_factory=list[tuple[str, Future[Any]]])

    def succeeded(self) -> set[str]:
        """What returned, and came to a result where it promised one."""
        done = {name for name, future in self.futures if _has_result(future)}
        return self.returned | done

    def settle(self, names: set[str], timeout_s: float) -> None:
        """Wait for what a test left unawaited of these calls."""
        wait([future for name, future in self.futures if name in names], timeout_s)


class Recorder:
    """Collects the calls of one test after the other; between tests nothing is recorded."""

    def __init__(self) -> None:
        self._current: Calls | None = None

    def start(self) -> Calls:
        self._current = Calls()
        return self._current

    def stop(self) -> None:
        self._current = None

    def note(self, name: str, value: Any) -> None:
        if self._current is None:
            return
        if isinstance(value, tinker.APIFuture):
            self._current.futures.append((name, value.future()))
        elif isinstance(value, Future):
            self._current.futures.append((name, value))
        else:
            self._current.returned.add(name)


recorder = Recorder()


def _has_result(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _is_of_tests(frame: FrameType | None) -> bool:
    """Whether the code that called the function with this frame is the tests' own."""
    caller = frame.f_back if frame is not None else None
    return caller is not None and Path(caller.f_code.co_filename).is_relative_to(_TESTS)


def _recorded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def called(*args: Any, **kwargs: Any) -> Any:
        is_ours = _is_of_tests(inspect.currentframe())
        value = call(*args, **kwargs)
        if not is_ours:
            return value
        if inspect.iscoroutine(value):
            return _awaited(name, value)
        # What a future's own methods return is not what they promise.
        recorder.note(name, None if name.startswith("APIFuture.") else value)
        return value

    return called


async def _awaited(name: str, coroutine: Any) -> Any:
    value = await coroutine
    recorder.note(name, value)
    return value


def _wrap_class(owner: type, counted_as: type) -> None:
    for name in surface.public_functions(counted_as):
        value = vars(owner).get(name)
        if value is None or getattr(value, _MARK, False):
            continue
        full_name = surface.folded_name(counted_as, name)
        is_static = isinstance(value, staticmethod)
        wrapped = _recorded(full_name, value.__func__ if is_static else value)
        setattr(wrapped, _MARK, True)
        setattr(owner, name, staticmethod(wrapped) if is_static else wrapped)


def _implementations(owner: type) -> list[type]:
    below = [each for child in owner.__subclasses__() for each in _implementations(child)]
    return [owner, *below]


def _wrap_auth() -> None:
    for name in tinker.auth.__all__:
        call: Any = getattr(tinker.auth, name)
        setattr(tinker.auth, name, _recorded(f"auth.{name}", call))


def command_name(arguments: Sequence[str]) -> str | None:
    """Which command of ``tinker`` a command line runs; None if it runs something else."""
    words = [str(each) for each in arguments]
    if words[1:3] == ["-m", "tinker.cli"]:
        words = words[3:]
    elif words and Path(words[0]).name == "tinker":
        words = words[1:]
    else:
        return None
    paths = {path[1:] for path in surface.commands(main_cli, ("tinker",))}
    # Options of the program itself come before the command: -f json.
    for start in range(len(words)):
        for length in (1, 2, 3):
            if tuple(words[start : start + length]) in paths:
                return " ".join(["tinker", *words[start : start + length]])
    return None


def _wrap_commands() -> None:
    run = subprocess.run

    @functools.wraps(run)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        ran = run(*args, **kwargs)
        arguments = args[0] if args else kwargs.get("args", ())
        name = None if isinstance(arguments, str | bytes) else command_name(arguments)
        if name is not None and ran.returncode == 0:
            recorder.note(name, None)
        return ran

    subprocess.run = recorded


for _client in surface.CLIENTS:
    for _owner in _implementations(_client) if _client is tinker.APIFuture else [_client]:
        _wrap_class(_owner, _client)
_wrap_auth()
_wrap_commands()
