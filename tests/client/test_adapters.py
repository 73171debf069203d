from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cyclora_client.adapters import upload_adapter
from cyclora_client.cli import app
from cyclora_core.errors import CycloraError, NotFound, ServerError, Unavailable, UserError

PATH = "tinker://run/weights/mine"


class Server:
    """A server with these answers, the last of them again and again; keeps what it was sent."""

    def __init__(self, *answers: tuple[int, Any] | Exception) -> None:
        self._answers = list(answers or [(200, {"tinker_path": PATH})])
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer[0], json=answer[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"w" * 3_000_001)
    (tmp_path / "README.md").write_text("not sent")
    return tmp_path


def upload(folder: Path, server: Server) -> str:
    return upload_adapter(
        folder,
        "org/tiny",
        name="mine",
        base_url="http://gpu/prefix/",
        api_key="tml-key",
        transport=httpx.MockTransport(server),
    )


def test_the_two_files_are_sent_as_a_tar_of_known_length(folder: Path) -> None:
    server = Server()

    assert upload(folder, server) == PATH

    [request] = server.requests
    assert str(request.url) == "http://gpu/prefix/api/v1/adapters?base_model=org%2Ftiny&name=mine"
    assert request.headers["X-API-Key"] == "tml-key"
    assert request.headers["Content-Length"] == str(len(request.content))
    assert "Transfer-Encoding" not in request.headers
    with tarfile.open(fileobj=io.BytesIO(request.content)) as tar:
        sent = {name: opened.read() for name in tar.getnames() if (opened := tar.extractfile(name))}
    assert list(sent) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(data == (folder / name).read_bytes() for name, data in sent.items())


@pytest.mark.parametrize("first", [httpx.ReadError("reset"), (429, {}), (503, {})])
def test_a_try_that_failed_is_repeated_to_the_effect_of_once(folder: Path, first: Any) -> None:
    server = Server(first, (200, {"tinker_path": PATH}))

    assert upload(folder, server) == PATH

    keys = [request.headers["X-Idempotency-Key"] for request in server.requests]
    assert len(keys) == 2
    assert keys[0] == keys[1]
    assert server.requests[0].content == server.requests[1].content


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, {"detail": "use_dora"}), UserError),
        ((404, {"detail": "not served"}), NotFound),
        ((429, {"detail": "no room"}), Unavailable),
        ((500, {"detail": "error id"}), ServerError),
        ((200, {}), ServerError),
        (httpx.ConnectError("refused"), Unavailable),
    ],
)
def test_a_refusal_says_whose_fault_it_is(
    folder: Path, answer: Any, kind: type[CycloraError]
) -> None:
    with pytest.raises(kind):
        upload(folder, Server(answer))


def test_a_folder_without_safetensors_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    server = Server()

    with pytest.raises(UserError, match=r"holds no adapter_model.safetensors"):
        upload(tmp_path, server)

    assert server.requests == []


def test_the_command_says_why_it_failed(tmp_path: Path) -> None:
    options = ["--base-model", "org/tiny", "--api-key", "tml-key"]

    result = CliRunner().invoke(app, ["adapters", "upload", str(tmp_path), *options])

    assert result.exit_code == 1
    assert "holds no adapter_config.json" in result.output
