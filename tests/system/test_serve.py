"""The command `serve` with a real run: as its page in docs/ shows it, with a public client, and with signals."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from libretranslatepy import LibreTranslateAPI
from rich.console import Console

from benchmarks import serve as benchmark
from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli import serve
from roundtrip.recipe.plan import directions
from tests import ROOT

Finished = tuple[Path, Path, str]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


@contextmanager
def server(run_dir: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command on a free port, and give its process and address."""
    command = [sys.executable, "-m", "roundtrip", "serve", str(run_dir), "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            shown = next((line for line in lines if line.startswith("serving")), "")
            assert shown.startswith("serving en-es and es-en at http://127.0.0.1:"), process.stderr.read()
            yield process, shown.split()[-1]
        finally:
            process.kill()


def test_what_the_page_shows_works_and_a_signal_ends_the_server(finished: Finished) -> None:
    blocks = re.findall(r"```\n(.*?)```", PAGE, re.S)
    started, requests = [block for block in blocks if "roundtrip serve" in block], []
    assert started == ["pip install 'roundtrip-mt[serve]'\nroundtrip serve runs/quickstart\n"]
    with server(finished[1]) as (process, url):
        for line in "".join(block for block in blocks if "curl" in block).splitlines():
            assert shutil.which("curl"), "the page shows curl"
            command = shlex.split(line.replace("http://127.0.0.1:5000/", url))
            shown = subprocess.run([*command, "-sf"], capture_output=True, text=True, timeout=60)
            assert shown.returncode == 0, line
            requests.append(json.loads(shown.stdout))
        single, several, round_trip, languages, detected, health = requests
        assert single["translatedText"] and len(several["translatedText"]) == 2
        assert {"translatedText", "back", "chrf"} <= round_trip.keys() and health == {"status": "ok"}
        assert [each["code"] for each in languages] == ["en", "es"] and detected[0]["language"] == "en"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[0].startswith("stopping after the running translations")


def test_both_directions_translate_as_each_by_itself(finished: Finished) -> None:
    run = RunFolder(finished[1])
    both = trained_models.load_directions(run, directions(run.recipe()))
    bases = [each.base for each in both.values()]
    assert bases[0] is bases[1], "one base"
    sources = {"en-es": "I see the red house here.", "es-en": "Veo la casa roja aquí."}
    # In turns, since they generate from the same weights.
    for name in ("en-es", "es-en", "en-es"):
        alone = trained_models.load(run, both[name].direction)
        assert both[name].translate([sources[name]]).texts == alone.translate([sources[name]]).texts
        assert both[name].expansion == alone.expansion and both[name].template.segments == alone.template.segments
    source = "I see the red house here."
    with server(finished[1], "--timeout", "30") as (_, url):
        text = LibreTranslateAPI(url).translate(f"{source}\n\n 12 \n{source} ", "en", "es")
    (expected,) = both["en-es"].translate([source]).texts
    assert text == f"{expected}\n\n 12 \n{expected} "


def test_the_environment_has_the_api_key(finished: Finished) -> None:
    with server(finished[1], ROUNDTRIP_API_KEY="secret") as (process, url):
        shown = Path(f"/proc/{process.pid}/cmdline")
        assert not shown.exists() or b"secret" not in shown.read_bytes()
        assert LibreTranslateAPI(url, "secret").translate("I see the moon.", "en", "es")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143


def test_a_second_signal_ends_the_server_at_once(finished: Finished) -> None:
    text = "\n".join(f"I see the red house {number}." for number in range(20_000))
    with server(finished[1], "--max-chars", "1000000") as (process, url), socket.socket() as client:
        client.connect(("127.0.0.1", urlsplit(url).port))
        body = json.dumps({"q": text, "source": "en", "target": "es"}).encode()
        head = "POST /translate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        assert process.poll() is None, "it finishes what runs"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert process.stderr is not None and "ended by a second signal" in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
        (["--timeout", "0"], "'0' is not a whole number from 1 to"),
        (["--host", "no such host"], "cannot listen on no such host, port 5000"),
        (["--host", "a" * 70], "cannot listen on aaa"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["--api-key-file", "missing"], "missing: cannot be read"),
        (["--api-key-file", "empty"], "empty: has no key"),
        (["--api-key-file", "binary"], "binary: cannot be read"),
        (["--port", "0"], "not a run folder"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    shell: object, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    code, output, errors = shell(serve, "nothing", *arguments)  # type: ignore[operator]
    assert code == 2 and problem in errors and not output and "Traceback" not in errors


def test_a_port_in_use_is_refused(shell: object) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        code, _, errors = shell(serve, "nothing", "--port", str(sock.getsockname()[1]))  # type: ignore[operator]
    assert code == 2 and "Address already in use" in errors and "name another --host or --port" in errors


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_its_libraries_the_command_says_what_to_install(
    shell: object, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda wanted: None if wanted == name else True)
    code, _, errors = shell(serve, "nothing")  # type: ignore[operator]
    assert code == 2 and f"needs {name}" in errors and "pip install 'roundtrip-mt[serve]'" in errors


def test_the_benchmark_loses_no_request(finished: Finished) -> None:
    document = benchmark.document(finished[1], 16, "cpu")
    assert set(document["variants"]) == set(benchmark.VARIANTS)
    for figures in document["variants"].values():
        assert figures["requests"] == 16 and figures["lost"] == 0
        assert 0 < figures["p50"] <= figures["p95"] <= figures["seconds"]
    shown = io.StringIO()
    benchmark.show(document, Console(file=shown, width=100))
    assert all(name in shown.getvalue() for name in benchmark.VARIANTS)
