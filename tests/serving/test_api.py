"""The HTTP interface, over sockets, with translations that are made up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError

import pytest
from libretranslatepy import LibreTranslateAPI

from roundtrip.serving.translation_queue import Limits
from tests.serving.servers import Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Limits(max_chars=200, max_texts=3)) as server:
        yield server


def test_the_public_client_of_this_api_translates(server: Server) -> None:
    client = LibreTranslateAPI(server.url)
    assert client.translate("the red house", "en", "es") == "en-es: house red the"
    assert [each["code"] for each in client.languages()] == ["en", "es"]
    assert [each["language"] for each in client.detect("Nos gusta la puerta roja en el jardín")] == ["es", "en"]
    with pytest.raises(HTTPError, match="400"):
        client.translate("the red house", "en", "de")


def test_one_text_and_lists_of_texts(server: Server) -> None:
    assert server.translate("a b") == (200, {"translatedText": "en-es: b a"})
    assert server.translate(["a b", "c"], "es", "en") == (200, {"translatedText": ["es-en: b a", "es-en: c"]})
    assert server.translate(["cut", "c"])[1]["problems"] == ["it was cut", ""]
    assert server.translate("cut")[1]["problems"] == "it was cut"
    assert server.translate("a", alternatives=3)[1]["alternatives"] == []
    assert server.translate(["a", "b"], alternatives="3")[1]["alternatives"] == [[], []]
    assert server.translate("a", "en-US", "es_MX", format="text", api_key="not needed")[0] == 200


def test_a_text_without_a_translation_does_not_fail_the_others_of_its_list(server: Server) -> None:
    problem = "a sentence of 900 words is too long"
    assert server.translate(["a b", "too long", ""]) == (
        200,
        {"translatedText": ["en-es: b a", "", "en-es: "], "problems": ["", problem, ""]},
    )
    assert server.translate(["too long"]) == (200, {"translatedText": [""], "problems": [problem]})
    for path in ("/translate", "/roundtrip"):
        status, answer = server.send(path, b"q=too+long&source=en&target=es", FORM)
        assert status == 400 and answer["error"] == f"the text cannot be translated: {problem}"


def test_the_source_may_be_identified(server: Server) -> None:
    text = "Nos gusta la puerta roja en el jardín"
    status, answer = server.translate(text, "auto", "en")
    assert status == 200 and answer["translatedText"].startswith("es-en: ")
    assert answer["detectedLanguage"]["language"] == "es" and answer["detectedLanguage"]["confidence"] > 90
    _, answer = server.translate([text, text], "auto", "es")
    assert [each["language"] for each in answer["detectedLanguage"]] == ["en", "en"]
    assert answer["detectedLanguage"][0]["confidence"] < 10


def test_a_round_trip_has_the_text_that_came_back_and_its_chrf(server: Server) -> None:
    status, answer = server.send("/roundtrip", json.dumps({"q": "a b cut", "source": "en", "target": "es"}).encode())
    assert status == 200
    assert (answer["translatedText"], answer["back"]) == ("en-es: cut b a", "es-en: a b cut en-es:")
    assert 0 < answer["chrf"] < 100 and answer["problems"] == []


def test_what_programs_ask_first(server: Server) -> None:
    assert server.send("/health") == (200, {"status": "ok"})
    _, languages = server.send("/languages")
    assert languages[0] == {"code": "en", "name": "English", "targets": ["es"]}
    _, settings = server.send("/frontend/settings")
    assert settings["charLimit"] == 200 and not settings["keyRequired"]
    assert settings["language"]["target"] == {"code": "es", "name": "Spanish"}


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("status", "body", "kind", "problem"),
    [
        (400, b"", "application/json", "not valid JSON"),
        (400, b"{", "application/json", "not valid JSON"),
        (400, b'{"q": "\xff"}', "application/json", "not valid JSON"),
        (400, b"[" * 60_000, "application/json", "not valid JSON"),
        (400, b'{"a": ' * 10_000, "application/json", "not valid JSON"),
        (400, b"9" * 5000, "application/json", "not valid JSON"),
        (400, b"[]", "application/json", "not a JSON object"),
        (400, b"q=%ff", FORM, "not valid form data"),
        (400, b"a&" * 100, FORM, "not valid form data"),
        (400, b"source=en&target=es", FORM, "'q' is missing"),
        (400, b"q=a&target=es", FORM, "'source' is missing"),
        (400, b"q=a&source=en&target=", FORM, "'target' is missing"),
        (400, b"q=a&source=en&target=en", FORM, "between en and es, not from 'en' into 'en'"),
        (400, b"q=a&source=%1b&target=es", FORM, "not from '\\x1b' into 'es'"),
        (400, b"q=a&source=en&target=es&format=html", FORM, "without markup"),
        (400, b"q=a&source=en&target=es&alternatives=x", FORM, "'alternatives' is not a whole number"),
        (400, b'{"q": [], "source": "en", "target": "es"}', "application/json", "'q' is missing"),
        (400, b'{"q": ["a", 5], "source": "en", "target": "es"}', "application/json", "list of strings"),
        (400, b'{"q": ["", ""], "source": "en", "target": "es"}', "application/json", "'q' is missing"),
        (400, b'{"q": "a", "source": ["en"], "target": "es"}', "application/json", "'source' is missing, or not"),
        (400, b"q=a&source=en&target=" + b"e" * 51, FORM, "'target' is missing, or not the code"),
        (400, b'{"q": ["a", "b", "c", "d"], "source": "en", "target": "es"}', "application/json", "4 texts"),
        (400, b"q=" + b"a" * 201 + b"&source=en&target=es", FORM, "201 characters; this server takes 200"),
        (400, b"q=too+long&source=en&target=es", FORM, "the text cannot be translated: a sentence of 900"),
        (413, b"q=" + b"a" * 70_000, FORM, "more than 67,936 bytes"),
        (413, b"[" * 100_000, "application/json", "more than 67,936 bytes"),
        (415, b"q=a", "multipart/form-data; boundary=a", "content type 'multipart/form-data'"),
        (415, b"q=a", "", "content type ''"),
        (500, b"q=fault&source=en&target=es", FORM, "its own messages say why"),
    ],
)
def test_bad_requests_get_a_status_and_a_reason(
    server: Server, status: int, body: bytes, kind: str, problem: str
) -> None:
    got, answer = server.send("/translate", body, kind)
    assert got == status and list(answer) == ["error"]
    assert problem in answer["error"] and "Traceback" not in answer["error"]
    assert server.translate("a")[0] == 200, "the server goes on"


def test_other_paths_and_methods(server: Server) -> None:
    assert server.send("/nothing") == (404, {"error": "Not Found"})
    assert server.send("/translate") == (405, {"error": "Method Not Allowed"})
    assert server.send("/languages", b"{}")[0] == 405


def test_any_characters_come_back_as_text(server: Server) -> None:
    body = rb'{"q": "\ud800 \u0000\u202e <script> \ud83d\ude00", "source": "en", "target": "es"}'
    status, answer = server.send("/translate", body)
    assert (status, answer["translatedText"]) == (200, "en-es: \U0001f600 <script> \0\u202e \ufffd")


def test_requests_under_other_names_and_of_other_sites_are_refused(server: Server) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:5000", "", "[", "10.0.0.1"):
        assert server.send("/health", host=host)[0] == 403, host
    for host in ("localhost", "LOCALHOST:5000", "127.0.0.1", "[::1]:5000", "127.9.9.9"):
        assert server.send("/health", host=host)[0] == 200, host
    body = b"q=a&source=en&target=es"
    assert server.send("/translate", body, FORM, sec_fetch_site="cross-site")[0] == 403
    assert server.send("/translate", body, FORM, sec_fetch_site="same-origin")[0] == 200
    assert not any(name.startswith("access-control") for name in server.headers)


def test_a_server_for_others_has_any_name() -> None:
    with serving(is_local=False) as server:
        assert server.send("/health", host="translate.example")[0] == 200


def test_requests_need_the_api_key() -> None:
    key = "clé secrète"
    with serving(api_key=key) as server:
        assert server.translate("a", api_key=key)[0] == 200
        assert server.translate("a", api_key="clé") == (403, {"error": "wrong API key"})
        for other in ({}, {"api_key": None}, {"api_key": [key]}, {"api_key": ""}):
            status, answer = server.translate("a", **other)
            assert status == 403 and "needs an API key" in answer["error"]
        assert server.send("/translate", rb'{"api_key": "\ud800"}')[0] == 403
        assert server.send("/detect", b"q=a", FORM)[0] == server.send("/roundtrip", b"q=a", FORM)[0] == 403
        assert server.send("/languages")[0] == server.send("/health")[0] == 200
        assert server.send("/frontend/settings")[1]["keyRequired"]
        assert LibreTranslateAPI(server.url, key).translate("a b", "en", "es") == "en-es: b a"
        assert len(server.batches) == 2


def test_without_identification_of_languages() -> None:
    with serving(identify=False) as server:
        for status, answer in (server.send("/detect", b"q=a", FORM), server.translate("a", "auto")):
            assert status == 400 and "pip install 'roundtrip-mt[langid]'" in answer["error"]
        assert not server.batches


def wait_until(server: Server, num_batches: int) -> None:
    while len(server.batches) < num_batches:
        time.sleep(0.01)


def test_concurrent_requests_are_translated_together_and_none_is_lost() -> None:
    with serving() as server, ThreadPoolExecutor(50) as pool:
        server.gate.clear()
        first = pool.submit(server.translate, "first")
        wait_until(server, 1)
        others = [pool.submit(server.translate, f"text {number:02}") for number in range(40)]
        time.sleep(1)
        server.gate.set()
        assert first.result() == (200, {"translatedText": "en-es: first"})
        assert [each.result()[1]["translatedText"] for each in others] == [f"en-es: {n:02} text" for n in range(40)]
        assert len(server.batches) < 10


def test_a_full_queue_asks_to_come_again() -> None:
    with serving(Limits(max_waiting=1)) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        running = pool.submit(server.translate, "first")
        wait_until(server, 1)
        waiting = pool.submit(server.translate, "second")
        time.sleep(0.5)
        assert server.translate("third") == (503, {"error": "1 request waiting already"})
        assert server.headers["retry-after"] == "5"
        server.gate.set()
        assert running.result()[0] == waiting.result()[0] == 200


def test_what_takes_too_long_is_dropped() -> None:
    with serving(Limits(seconds=0.5)) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        running = pool.submit(server.translate, "a")
        wait_until(server, 1)
        waiting = pool.submit(server.translate, "b")
        for each in (running, waiting):
            assert each.result() == (504, {"error": "not translated within 0.5 seconds"})
        server.gate.set()
        assert server.translate("c")[0] == 200
        assert server.batches == [("en-es", ["a"]), ("en-es", ["c"])]


def test_what_a_client_does_not_wait_for_is_dropped() -> None:
    with serving() as server, ThreadPoolExecutor(1) as pool:
        server.gate.clear()
        running = pool.submit(server.translate, "a")
        wait_until(server, 1)
        with socket.create_connection(server.address) as client:
            body = b"q=gone&source=en&target=es"
            head = f"POST /translate HTTP/1.1\r\nhost: localhost\r\ncontent-type: {FORM}\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.5)
        time.sleep(0.5)
        server.gate.set()
        assert running.result()[0] == server.translate("c")[0] == 200
        assert server.batches == [("en-es", ["a"]), ("en-es", ["c"])]


@pytest.mark.parametrize("head", [b"content-length: 100\r\n\r\nq=a", b"transfer-encoding: chunked\r\n\r\n3\r\nq=a\r\n"])
def test_a_body_that_does_not_arrive_is_not_waited_for(head: bytes) -> None:
    with serving(Limits(seconds=0.3)) as server, socket.create_connection(server.address, timeout=10) as client:
        client.sendall(b"POST /translate HTTP/1.1\r\nhost: localhost\r\n" + head)
        answer = b""
        while part := client.recv(1000):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.3 seconds" in answer


def test_a_stop_finishes_what_runs_and_refuses_what_waits() -> None:
    with serving() as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        running = pool.submit(server.translate, "a")
        wait_until(server, 1)
        waiting: Any = pool.submit(server.translate, "b")
        time.sleep(0.5)
        server.stop.request()
        assert server.translate("c") == (503, {"error": "the server is stopping"})
        threading.Timer(0.2, server.gate.set).start()
        assert running.result() == (200, {"translatedText": "en-es: a"})
        assert waiting.result() == (503, {"error": "the server is stopping"})
        assert server.batches == [("en-es", ["a"])]


def test_a_fault_of_the_server_is_reported_to_its_owner_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("roundtrip.serving.api.sentence_chrf", lambda *_: 1 / 0)
    with serving() as server:
        status, answer = server.send("/roundtrip", b"q=a&source=en&target=es", FORM)
        assert (status, answer) == (500, {"error": "the server failed; its own messages say why"})
        assert list(map(type, server.errors)) == [ZeroDivisionError]
    assert capfd.readouterr() == ("", "")


def test_a_stop_does_not_wait_for_slow_clients(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("roundtrip.cli.serve._SHUTDOWN_SECONDS", 1)
    with socket.socket() as client:
        with serving() as server:
            client.connect(server.address)
            head = f"POST /translate HTTP/1.1\r\nhost: localhost\r\ncontent-type: {FORM}\r\n"
            client.sendall(f"{head}content-length: 100\r\n\r\nq=".encode())
            time.sleep(0.5)
            start = time.monotonic()
        assert time.monotonic() - start < 15
    assert capfd.readouterr() == ("", "")
