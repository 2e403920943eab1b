"""Reading what a client sends: the fields of a JSON object or of a form, within limits of size and time."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request

from roundtrip.runtime.errors import printable, quantity
from roundtrip.serving.translation_queue import Limits

_MAX_FIELDS = 50
_MAX_CODE_CHARS = 50
# Of a character: `%F0%9F%98%80` in a form, `\ud83d\ude00` in JSON.
_BYTES_PER_CHAR = 12
_OTHER_BYTES = 1 << 16


def refuse(status: int, problem: str, headers: Mapping[str, str] | None = None) -> NoReturn:
    """End a request by an error of HTTP, whose problem the client gets."""
    raise HTTPException(status, printable(problem), headers)


async def read_fields(request: Request, limits: Limits) -> dict[str, Any]:
    """Return the fields that a client has sent."""
    body = await _read_body(request, _BYTES_PER_CHAR * limits.max_chars + _OTHER_BYTES, limits.seconds)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            fields = json.loads(body)
        elif kind == "application/x-www-form-urlencoded":
            values = parse_qs(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
            fields = {name: texts[0] for name, texts in values.items()}
        else:
            refuse(415, f"content type '{kind[:50]}'; send application/json or application/x-www-form-urlencoded")
    except (ValueError, RecursionError):
        refuse(400, f"the body is not valid {'JSON' if kind == 'application/json' else 'form data'} in UTF-8")
    if not isinstance(fields, dict):
        refuse(400, "the body is not a JSON object")
    return fields


async def _read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    body = bytearray()
    # What is left of the body is not read, so the connection cannot be used again.
    closing = {"connection": "close"}
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    refuse(413, f"the body has more than {max_bytes:,} bytes", closing)
    except TimeoutError:
        refuse(408, f"the body did not arrive within {seconds:g} seconds", closing)
    return bytes(body)


def read_code(fields: Mapping[str, Any], name: str) -> str:
    """Return a field that has to be the code of a language: a short one, since parsed codes are kept in memory."""
    value = fields.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_CODE_CHARS:
        refuse(400, f"'{name}' is missing, or not the code of a language")
    return value


def read_texts(fields: Mapping[str, Any], limits: Limits, *, lists: bool = True) -> list[str]:
    """Return the texts of the field `q`, a string or, where `lists`, a list of strings."""
    value = fields.get("q")
    given = value if lists and isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given) or not any(texts):
        refuse(400, f"'q' is missing or empty, or not a string{' or a list of strings' if lists else ''}")
    if len(texts) > limits.max_texts:
        refuse(400, f"{len(texts)} texts; this server takes {limits.max_texts} in a request")
    if (num_chars := sum(map(len, texts))) > limits.max_chars:
        refuse(400, f"{quantity(num_chars, 'character')}; this server takes {limits.max_chars:,} in a request")
    # Lone surrogates, which JSON can spell, cannot be sent back.
    return [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]


def read_count(fields: Mapping[str, Any], name: str) -> int:
    """Return a field that is a whole number, 0 where it is missing."""
    value = fields.get(name) or 0
    try:
        number = int(value) if isinstance(value, int | str) else -1
    except ValueError:
        number = -1
    if number < 0:
        refuse(400, f"'{name}' is not a whole number from 0")
    return number
