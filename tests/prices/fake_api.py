"""A local HTTP server that answers like a price API, and the installed sources."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tokenopt.plugins import load_plugins
from tokenopt.records import PriceSource

ROOT = Path(__file__).parents[2]


def fixture(name: str) -> bytes:
    """A file in the shape of a source, from the tests of the package that reads it."""
    (path,) = ROOT.glob(f"plugins/*/tests/fixtures/{name}")
    return path.read_bytes()


@dataclass
class Answer:
    """What the server sends; `cut` announces the whole body and sends a part of it."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class Request:
    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: bytes


def _not_found(request: Request) -> Answer:
    return Answer(status=404)


class FakeApi:
    """Answers by `route`; the first requests meet `faults`, one each."""

    def __init__(self) -> None:
        self.route: Callable[[Request], Answer] = _not_found
        self.faults: list[Answer] = []
        self.requests: list[Request] = []
        self.url = ""

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.faults.pop(0) if self.faults else self.route(request)

    def serve(self, pages: Mapping[str, bytes]) -> None:
        """Answers each path with its bytes."""
        self.route = lambda request: Answer(pages[request.path]) if request.path in pages else Answer(status=404)


@pytest.fixture
def price_api() -> Iterator[FakeApi]:
    fake = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def _handle(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            answer = fake.answer(
                Request(self.command, parts.path, parse_qs(parts.query), dict(self.headers.items()), body)
            )
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)

        do_GET = do_POST = _handle

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture(scope="session")
def price_sources() -> dict[str, PriceSource]:
    """Sources of the installed packages; all seven families must be there."""
    found = load_plugins().price_sources
    assert {"aws", "azure", "gcp", "oci", "lambda", "skypilot", "gpuhunt"} <= set(found), sorted(found)
    return found


@pytest.fixture
def price_store(tmp_path: Path) -> Path:
    return tmp_path / "prices.sqlite"
