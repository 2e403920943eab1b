"""roundtrip serve RUN: an HTTP server that translates with both directions of a run, as LibreTranslate does."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, open_run, run_cli
from roundtrip.runtime.errors import Interrupted, RoundtripError, UsageError, first_line, printable, quantity
from roundtrip.runtime.event_log import print_line
from roundtrip.runtime.interrupts import StopRequest, catch_signals

if TYPE_CHECKING:
    from roundtrip.data.language_id import LanguageIdentifier
    from roundtrip.serving.api import Api
    from roundtrip.serving.translation_queue import TranslationQueue

API_KEY = "ROUNDTRIP_API_KEY"
_STOPPING = "stopping after the running translations; a second signal ends the process"
_ENDED = "ended by a second signal; running translations are lost"
_MAX_KEY_CHARS = 1000
# Connections beyond those that may wait, for what is answered at once; still more are refused by the HTTP library.
_SPARE_CONNECTIONS = 256
# Seconds that answers may take to be sent at the end.
_SHUTDOWN_SECONDS = 5


def main() -> None:
    description = "Translate for other programs over HTTP, by the API of LibreTranslate; / is a page for people."
    epilog = f"An API key, without which requests are refused, is read from the variable {API_KEY} or a file."
    parser = ArgumentParser(prog="roundtrip serve", description=description, epilog=epilog)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument(
        "--port", type=partial(_number, 0, 65535), default=5000, help="5000 by default; 0: any free one"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda:0, ...")
    parser.add_argument("--stage", default="best", help="which adapters: best (default), parallel, round-1, ...")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file whose content is the API key")
    positive = partial(_number, 1, 10**7)
    parser.add_argument("--max-chars", type=positive, default=10_000, help="characters in a request (10000)")
    parser.add_argument("--max-texts", type=positive, default=100, help="texts in a request (100)")
    parser.add_argument("--max-waiting", type=positive, default=256, help="requests that may wait (256)")
    parser.add_argument("--timeout", type=positive, default=60, help="seconds in which a request is answered (60)")
    run_cli(serve, parser)


def _number(least: int, most: int, text: str) -> int:
    """Return a number that an argument names."""
    if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
        raise argparse.ArgumentTypeError(f"'{printable(text[:50])}' is not a whole number from {least} to {most}")
    return int(text)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal comes; what is being translated then is finished."""
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            cure = "pip install 'roundtrip-mt[serve]'"
            raise UsageError(f"the server needs {name}, which is not installed", cure=cure)
    api_key = read_api_key(arguments.api_key_file)
    say = partial(print_line, Console(stderr=True))
    # Bound before anything is loaded, and open to connections after that.
    with closing(_bind(arguments.host, arguments.port)) as sock:
        host, port = sock.getsockname()[:2]
        is_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        if not is_local and not api_key:
            say(f"whoever reaches {host} may translate here; the variable {API_KEY} sets a key")
        run, recipe = open_run(arguments.run)
        from roundtrip.backtranslation.dev_scoring import search_settings
        from roundtrip.backtranslation.trained_models import load_directions
        from roundtrip.recipe.plan import directions
        from roundtrip.serving.api import Api
        from roundtrip.serving.served_run import ServedRun
        from roundtrip.serving.translation_queue import Limits, TranslationQueue

        limits = Limits(arguments.max_chars, arguments.max_texts, arguments.max_waiting, arguments.timeout)
        both = directions(recipe)
        served = ServedRun(load_directions(run, both, arguments.stage, arguments.device), search_settings(recipe))
        identifier = _identifier(recipe.languages, say)
        names = " and ".join(each.name for each in both)
        with catch_signals(say, _STOPPING, _ENDED) as stop:
            queue = TranslationQueue(served.translate, limits, stop, partial(_report, say, arguments.debug))
            api = Api(queue, both, limits, recipe.template.names, identifier, api_key, is_local)
            sock.listen()
            say(f"serving {names} at http://{f'[{host}]' if ':' in host else host}:{port}/")
            work(queue, api, sock, stop)
    assert stop.signal_number is not None
    raise Interrupted(stop.signal_number, "running translations were finished, waiting ones refused")


def work(queue: TranslationQueue, api: Api, sock: socket.socket, stop: StopRequest) -> None:
    """Answer requests in a thread of their own, and translate in this one, until a stop is requested.

    This one has the signals, and the threads of torch.
    """
    import uvicorn

    config = uvicorn.Config(
        api.app(),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=api.limits.max_waiting + _SPARE_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(config)
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(server.run, sockets=[sock])
        answering.add_done_callback(lambda _: stop.request())
        try:
            queue.work()
        finally:
            server.should_exit = True
        answering.result()


def _identifier(languages: tuple[str, str], say: Callable[[str], None]) -> LanguageIdentifier | None:
    from roundtrip.data.language_id import LanguageIdentifier

    try:
        return LanguageIdentifier(languages, normalize=True)
    except RoundtripError as error:
        say(f"no language identification: {error.problem}")
        return None


def _report(say: Callable[[str], None], debug: bool, error: Exception) -> None:
    say(f"error: a request failed: {type(error).__name__}: {first_line(error)}")
    if debug:
        traceback.print_exception(error)


def read_api_key(path: Path | None) -> str:
    """Return the API key of a file, or else of the environment; empty where neither is given."""
    if path is None and API_KEY not in os.environ:
        return ""
    place, cure = str(path or API_KEY), "give it the key as one line of text"
    content = os.environ.get(API_KEY, "")
    if path is not None:
        try:
            with path.open(encoding="utf-8") as file:
                content = file.read(2 * _MAX_KEY_CHARS)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot be read: {first_line(error)}", place=place, cure=cure) from error
    key = content.strip()
    if not key or len(key) > _MAX_KEY_CHARS or not key.isprintable():
        raise UsageError(f"has no key: {quantity(len(key), 'character')}, or unprintable ones", place=place, cure=cure)
    return key


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that has an address, and does not listen yet."""
    cure = "name another --host" if port == 0 else "end what uses it, or name another --host or --port"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {first_line(error)}", cure=cure) from error
    return sock
