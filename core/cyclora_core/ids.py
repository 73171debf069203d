"""The grammar of every identifier, and the checks a name from outside must pass.

::

    session_id            a UUID; never holds "/" or ":"
    model_id              {session_id}:train:{model_seq_id}       (the SDK computes it itself)
    sampling_session_id   {session_id}:sample:{sampling_session_seq_id}
    request_id            {model_id or sampling_session_id}:{seq_id}
    loss_id               {session_id}:loss:{custom_loss_seq_id}, also its own request_id
    checkpoint path       tinker://{model_id}/{weights|sampler_weights|external_weights}/{name}

``request_id`` is a pure function of what the SDK sends, so a retry finds the same future.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import StrEnum

from cyclora_core.errors import UserError

_SESSION = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SESSION_RE = re.compile(_SESSION)
_MODEL_RE = re.compile(rf"({_SESSION}):train:(0|[1-9][0-9]{{0,9}})")
_SAMPLING_SESSION_RE = re.compile(rf"({_SESSION}):sample:(0|[1-9][0-9]{{0,9}})")
_LOSS_RE = re.compile(rf"({_SESSION}):loss:(0|[1-9][0-9]{{0,9}})")
_NAME_RE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_PATH_PREFIX = "tinker://"


class CheckpointKind(StrEnum):
    """The middle part of a checkpoint path."""

    TRAINING = "weights"
    SAMPLER = "sampler_weights"
    EXTERNAL = "external_weights"


def new_session_id() -> str:
    return str(uuid.uuid4())


def is_session_id(text: str) -> bool:
    return _SESSION_RE.fullmatch(text) is not None


def is_model_id(text: str) -> bool:
    return _MODEL_RE.fullmatch(text) is not None


def is_sampling_session_id(text: str) -> bool:
    return _SAMPLING_SESSION_RE.fullmatch(text) is not None


def is_loss_id(text: str) -> bool:
    return _LOSS_RE.fullmatch(text) is not None


def model_id(session_id: str, model_seq_id: int) -> str:
    return f"{session_id}:train:{model_seq_id}"


def sampling_session_id(session_id: str, sampling_session_seq_id: int) -> str:
    return f"{session_id}:sample:{sampling_session_seq_id}"


def loss_owner_id(session_id: str) -> str:
    """Whose numbered requests the uploads of custom losses are."""
    return f"{session_id}:loss"


def loss_id(session_id: str, custom_loss_seq_id: int) -> str:
    return request_id(loss_owner_id(session_id), custom_loss_seq_id)


def session_of(owner_id: str) -> str:
    """The session that a model, a sampling session or a custom loss belongs to."""
    return owner_id.split(":", 1)[0]


def request_id(owner_id: str, seq_id: int) -> str:
    """The future of one numbered request of a model or of a sampling session."""
    return f"{owner_id}:{seq_id}"


def check_name(name: str) -> str:
    """Return a checkpoint name unchanged, or refuse what could leave its folder or its URL.

    Raises:
        UserError: the name is empty, too long, starts with a dot or holds another character.
    """
    if not _NAME_RE.fullmatch(name):
        raise UserError(
            f"checkpoint name {name[:140]!r} is not allowed; use 1 to 128 characters of "
            "A-Z a-z 0-9 . _ - and do not start with a dot"
        )
    return name


@dataclass(frozen=True, slots=True)
class CheckpointPath:
    """A parsed ``tinker://`` path."""

    model_id: str
    kind: CheckpointKind
    name: str

    @classmethod
    def parse(cls, text: str) -> CheckpointPath:
        """Read a path a tenant sent.

        Raises:
            UserError: it is not of the form ``tinker://<model_id>/<kind>/<name>``.
        """
        kinds = "|".join(CheckpointKind)
        parts = text.removeprefix(_PATH_PREFIX).split("/")
        is_path = text.startswith(_PATH_PREFIX) and len(parts) == 3 and is_model_id(parts[0])
        if not is_path or parts[1] not in list(CheckpointKind):
            raise UserError(
                f"path {text[:300]!r} is not a checkpoint; expected tinker://<run>/<{kinds}>/<name>"
            )
        return cls(parts[0], CheckpointKind(parts[1]), check_name(parts[2]))

    @property
    def checkpoint_id(self) -> str:
        return f"{self.kind}/{self.name}"

    def __str__(self) -> str:
        return f"{_PATH_PREFIX}{self.model_id}/{self.kind}/{self.name}"
