"""The page for people, by a parse of its HTML."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from tests.serving.servers import serving

VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """The elements of a page: tag and attributes, and the text inside of `style` and `script`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.content: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.content[self.open[-1] if self.open else ""] = data

    def having(self, name: str) -> dict[str, str]:
        return {value: tag for tag, attributes in self.elements if (value := attributes.get(name)) is not None}


@pytest.fixture(scope="module")
def answer() -> tuple[str, dict[str, str]]:
    with serving() as server:
        status, text = server.send("/")
        assert status == 200
        return text, server.headers


def test_the_page_is_whole_and_names_its_parts(answer: tuple[str, dict[str, str]]) -> None:
    page = Page(answer[0])
    assert not page.open
    tags = [tag for tag, _ in page.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("title") == 1
    assert ("html", {"lang": "en"}) in page.elements
    metas = {attributes.get("name"): attributes.get("content") for tag, attributes in page.elements if tag == "meta"}
    assert metas["viewport"] == "width=device-width, initial-scale=1" and metas["color-scheme"] == "light dark"
    assert "prefers-color-scheme: dark" in page.content["style"]


def test_every_control_has_a_label_and_every_change_is_announced(answer: tuple[str, dict[str, str]]) -> None:
    page = Page(answer[0])
    ids, labelled = page.having("id"), page.having("for")
    assert len(ids) == sum("id" in attributes for _, attributes in page.elements)
    controls = {name for name, tag in ids.items() if tag in ("input", "select", "textarea")}
    assert controls == set(labelled) == {"text", "key", "direction"}
    assert {"status", "alert"} <= set(page.having("role"))
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(page.having(name)) <= set(ids)
    assert set(re.findall(r'\$\("([\w-]+)"\)', page.content["script"])) <= set(ids)


def test_the_page_needs_nothing_from_elsewhere_and_shows_text_as_text(answer: tuple[str, dict[str, str]]) -> None:
    text, headers = answer
    page = Page(text)
    assert not {"src", "href", "action", "onclick", "style"} & {name for _, each in page.elements for name in each}
    assert "//" not in text.replace("<!doctype", "") and "@import" not in text and "url(" not in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.content[kind].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
