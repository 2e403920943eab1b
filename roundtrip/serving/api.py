"""The HTTP interface: that of LibreTranslate (https://docs.libretranslate.com), and a page for people."""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from roundtrip.data.language_id import LanguageIdentifier
from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.evaluation.metrics import sentence_chrf
from roundtrip.recipe.language_codes import language_name
from roundtrip.recipe.plan import Direction
from roundtrip.serving.client_request import read_code, read_count, read_fields, read_texts, refuse
from roundtrip.serving.served_run import find_direction
from roundtrip.serving.translation_queue import STOPPING, Limits, QueueError, TranslationQueue

# What a client is told to wait for when the queue is full.
RETRY_SECONDS = 5
_PAGE = Path(__file__).with_name("page.html")
_NO_IDENTIFICATION = "this server cannot identify languages (pip install 'roundtrip-mt[langid]'); name the 'source'"
_FAILED = "the server failed; its own messages say why"

_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Api:
    """What the requests of all clients share.

    Attributes:
        directions: both, the first of which the page offers first.
        names: of languages, see `language_name`.
        identifier: None where languages cannot be told apart.
        api_key: that requests must have; none where empty.
        is_local: the server listens on this machine alone.
    """

    queue: TranslationQueue
    directions: Sequence[Direction]
    limits: Limits
    names: Mapping[str, str] = field(default_factory=dict)
    identifier: LanguageIdentifier | None = None
    api_key: str = field(default="", repr=False)
    is_local: bool = True

    def app(self) -> Starlette:
        """Return the ASGI application."""
        handlers: dict[Any, Any] = {
            HTTPException: lambda _, error: _error(error.status_code, error.detail, error.headers),
            QueueError: lambda _, error: _error(503, str(error), {"retry-after": str(RETRY_SECONDS)}),
            ClientDisconnect: lambda *_: _error(400, "the client has gone"),
        }
        page, security = _page()
        routes = [
            self._route("/", "GET", lambda _: _ready(HTMLResponse(page, headers=security))),
            self._route("/health", "GET", lambda _: _ready(JSONResponse({"status": "ok"}))),
            self._route("/languages", "GET", lambda _: _ready(JSONResponse(self._languages()))),
            self._route("/frontend/settings", "GET", lambda _: _ready(JSONResponse(self._settings()))),
            self._route("/translate", "POST", self._translate),
            self._route("/roundtrip", "POST", self._round_trip),
            self._route("/detect", "POST", self._detect),
        ]
        return Starlette(routes=routes, exception_handlers=handlers)

    def _route(self, path: str, method: str, handler: _Handler) -> Route:
        async def checked(request: Request) -> Response:
            # A page of another site may send requests from the browser of a person here: under a name of its own that
            # resolves to this machine, or without reading the answers.
            if self.is_local and not _is_local(request.headers.get("host", "")):
                refuse(403, "this server is for its own machine; use it as localhost or 127.0.0.1")
            if request.headers.get("sec-fetch-site") == "cross-site" and method == "POST":
                refuse(403, "requests of other sites are refused")
            try:
                return await handler(request)
            except (HTTPException, ClientDisconnect, QueueError):
                raise
            except asyncio.CancelledError:
                # At the end of the server, of a client that is too slow.
                return _error(503, STOPPING)
            except Exception as error:
                self.queue.on_error(error)
                return _error(500, _FAILED)

        return Route(path, checked, methods=[method])

    def _languages(self) -> list[dict[str, Any]]:
        return [
            {"code": each.source, "name": language_name(each.source, self.names), "targets": [each.target]}
            for each in self.directions
        ]

    def _settings(self) -> dict[str, Any]:
        source, target = ({key: each[key] for key in ("code", "name")} for each in self._languages())
        return {
            "charLimit": self.limits.max_chars,
            "frontendTimeout": 500,
            "apiKeys": bool(self.api_key),
            "keyRequired": bool(self.api_key),
            "suggestions": False,
            "filesTranslation": False,
            "supportedFilesFormat": [],
            "language": {"source": source, "target": target},
        }

    async def _fields(self, request: Request) -> dict[str, Any]:
        fields = await read_fields(request, self.limits)
        given = fields.get("api_key")
        sent = given.encode("utf-8", "surrogatepass") if isinstance(given, str) else b""
        if self.api_key and not hmac.compare_digest(sent, self.api_key.encode()):
            refuse(403, "wrong API key" if sent else "this server needs an API key, in the field 'api_key'")
        return fields

    async def _translate(self, request: Request) -> Response:
        fields = await self._fields(request)
        texts, is_list = read_texts(fields, self.limits), isinstance(fields.get("q"), list)
        direction, num_alternatives = self._direction(fields), read_count(fields, "alternatives")
        if (fields.get("format") or "text") != "text":
            refuse(400, "only 'format' = 'text': tags would cut sentences apart; send the text without markup")
        results = await self._translations(request, direction, texts, is_list=is_list)
        answer: dict[str, list[Any]] = {"translatedText": [each.text for each in results]}
        if any(each.problem for each in results):
            answer["problems"] = [each.problem for each in results]
        if num_alternatives:
            # At most so many are asked for; the search gives one translation.
            answer["alternatives"] = [[] for _ in texts]
        if fields["source"] == "auto":
            detected = [self._probabilities(text).get(direction.source, 0.0) for text in texts]
            answer["detectedLanguage"] = [_confidence(direction.source, each) for each in detected]
        return JSONResponse(answer if is_list else {key: values[0] for key, values in answer.items()})

    async def _round_trip(self, request: Request) -> Response:
        fields = await self._fields(request)
        texts, direction = read_texts(fields, self.limits, lists=False), self._direction(fields)
        (translated,) = await self._translations(request, direction, texts)
        (back,) = await self._translations(request, direction.reverse, [translated.text])
        chrf = await asyncio.to_thread(sentence_chrf, back.text, texts[0])
        named = {"translation": translated.problem, "translated back": back.problem}
        problems = [f"{name}: {problem}" for name, problem in named.items() if problem]
        answer = {"translatedText": translated.text, "back": back.text, "chrf": round(chrf, 1), "problems": problems}
        return JSONResponse(answer)

    async def _detect(self, request: Request) -> Response:
        (text,) = read_texts(await self._fields(request), self.limits, lists=False)
        ranked = sorted(self._probabilities(text).items(), key=lambda each: -each[1])
        return JSONResponse([_confidence(*each) for each in ranked])

    def _probabilities(self, text: str) -> dict[str, float]:
        if self.identifier is None:
            refuse(400, _NO_IDENTIFICATION)
        return self.identifier.probabilities(text)

    def _direction(self, fields: Mapping[str, Any]) -> Direction:
        source, target = read_code(fields, "source"), read_code(fields, "target")
        direction = find_direction(self.directions, source, target)
        if direction is None:
            languages = " and ".join(each.source for each in self.directions)
            refuse(400, f"this server translates between {languages}, not from '{source}' into '{target}'")
        if source == "auto" and self.identifier is None:
            refuse(400, _NO_IDENTIFICATION)
        return direction

    async def _translations(
        self, request: Request, direction: Direction, texts: Sequence[str], *, is_list: bool = False
    ) -> list[CheckedTranslation]:
        """Wait for the translations of texts; the work is dropped when that takes too long, or the client goes.

        A text without a translation fails the request, but not those that are in a list with it.
        """
        queued = self.queue.submit(direction.name, texts)
        result = asyncio.wrap_future(queued.result)
        disconnected = asyncio.ensure_future(_disconnected(request))
        waited: set[asyncio.Future[Any]] = {result, disconnected}
        try:
            await asyncio.wait(waited, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                if disconnected.done():
                    raise ClientDisconnect
                refuse(504, f"not translated within {self.limits.seconds:g} seconds")
            results = result.result()
        except (HTTPException, ClientDisconnect, QueueError):
            raise
        except Exception as error:
            # The queue has reported it.
            raise HTTPException(500, _FAILED) from error
        finally:
            queued.is_abandoned = True
            result.cancel()
            disconnected.cancel()
        if not is_list and texts[0] and not results[0].text:
            refuse(400, f"the text cannot be translated: {results[0].problem}")
        return results


async def _ready(response: Response) -> Response:
    return response


async def _disconnected(request: Request) -> None:
    """Wait until the client has gone, whose request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, problem: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": problem}, status, headers)


def _confidence(language: str, probability: float) -> dict[str, Any]:
    return {"confidence": round(100 * probability, 1), "language": language}


def _is_local(host: str) -> bool:
    """Return whether a Host header names this machine as only its own programs do."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _page() -> tuple[str, dict[str, str]]:
    """Return the page, and headers by which it runs its own script alone and loads nothing from elsewhere."""
    text = _PAGE.read_text(encoding="utf-8")
    allowed = []
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        allowed.append(f"{kind}-src 'sha256-{digest}'")
    policy = ["default-src 'none'", *allowed, "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    policy.append("frame-ancestors 'none'")
    security = {"content-security-policy": "; ".join(policy), "referrer-policy": "no-referrer"}
    return text, security | {"x-content-type-options": "nosniff"}
