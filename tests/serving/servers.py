"""A server on a free port of this machine, whose translations are made up, and requests to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from roundtrip.cli.serve import work
from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.engine.request import Callbacks
from roundtrip.recipe.plan import Direction
from roundtrip.runtime.interrupts import StopRequest
from roundtrip.serving.api import Api
from roundtrip.serving.translation_queue import Limits, TranslationQueue

BOTH = (Direction("en", "es"), Direction("es", "en"))


@dataclass
class Server:
    """A running server, and what it has translated: a batch each."""

    address: tuple[str, int]
    batches: list[tuple[str, list[str]]]
    errors: list[Exception]
    stop: StopRequest
    # Batches wait for it.
    gate: threading.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def send(
        self, path: str, body: bytes | None = None, kind: str = "application/json", **headers: str
    ) -> tuple[int, Any]:
        """Send a request, POST where there is a body, and return status and answer."""
        connection = HTTPConnection(*self.address, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, named | ({} if body is None else {"content-type": kind}))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        self.headers = dict(response.getheaders())
        is_json = response.getheader("content-type", "").startswith("application/json")
        return response.status, json.loads(content) if is_json else content.decode()

    def translate(self, q: object, source: str = "en", target: str = "es", **fields: object) -> tuple[int, Any]:
        body = {"q": q, "source": source, "target": target} | fields
        return self.send("/translate", json.dumps(body).encode())


def made_up(direction: str, text: str) -> CheckedTranslation:
    """Return a translation: words in the opposite order, and what some texts ask for."""
    if text == "fault":
        raise ZeroDivisionError("a fault")
    if text == "too long":
        return CheckedTranslation("", "a sentence of 900 words is too long")
    words = " ".join(reversed(text.split(" ")))
    return CheckedTranslation(f"{direction}: {words}", "it was cut" if text == "cut" else "")


@contextmanager
def serving(
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    *,
    identify: bool = True,
    **settings: Any,
) -> Iterator[Server]:
    """Serve made up translations until the end of the block."""
    stop, gate = StopRequest(), threading.Event()
    gate.set()
    batches: list[tuple[str, list[str]]] = []
    errors: list[Exception] = []

    def translate(direction: str, texts: Sequence[str], callbacks: Callbacks) -> list[CheckedTranslation]:
        batches.append((direction, list(texts)))
        assert gate.wait(30)
        callbacks.on_progress(len(texts), 1)
        return [made_up(direction, text) for text in texts]

    queue = TranslationQueue(translate, limits, stop, errors.append)
    identifier = LanguageIdentifier(("en", "es"), normalize=True) if identify else None
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        api = Api(queue, BOTH, limits, identifier=identifier, **settings)
        thread = threading.Thread(target=work, args=(queue, api, sock, stop))
        thread.start()
        try:
            yield Server(sock.getsockname(), batches, errors, stop, gate)
        finally:
            gate.set()
            stop.request()
            thread.join(30)
            assert not thread.is_alive()
