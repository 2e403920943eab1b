"""Random input for recipes, readers and the `pypi:` source: each is accepted or refused with a `RoundtripError`.

    python -m tests.tools.fuzz --inputs 100000                  by hypothesis, distributed over all targets
    python -m tests.tools.fuzz --atheris 600 --only readers     guided by coverage, for 600 seconds

Every input is a valid one with a few edits, or random bytes, and is processed in limited time and memory. Prints counts
as JSON; the first input that raises anything else ends the command.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import resource
import shutil
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

from roundtrip.data.readers import read_rows
from roundtrip.recipe import loader
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime import downloads
from roundtrip.runtime.errors import RoundtripError
from tests import ROOT

# CPU seconds and bytes for one input.
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
# Fragments of the formats.
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


def apply_edits(content: bytes, edits: list[tuple[int, float, float, bytes]]) -> bytes:
    """Apply edits, each a kind, two positions as fractions of the length, and a piece to insert."""
    for kind, first, second, piece in edits:
        start, end = sorted((int(first * len(content)), int(second * len(content))))
        span = content[start : start + min(end - start, 40)]
        match kind:
            case 0:
                content = content[:start] + piece + content[start:]
            case 1:
                content = content[:start] + content[start + len(span) :]
            case 2:
                content = content[:start] + piece + content[start + len(piece) :]
            case 3:
                content = content[:end] + span * 3 + content[end:]
            case 4:
                content = content[:end] if end else content
            case _:
                flip = bytes([content[start] ^ (1 << int(second * 7.99))]) if start < len(content) else b""
                content = content[:start] + flip + content[start + 1 :]
    return content


positions = st.floats(0, 1, exclude_max=True)
edits = st.lists(
    st.tuples(st.integers(0, 5), positions, positions, st.sampled_from(PIECES) | st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=6,
)


def mutations(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Return valid inputs with a few edits, sometimes random bytes."""
    return st.builds(apply_edits, st.sampled_from(seeds), edits) | st.binary(max_size=200)


def _raise_timeout(number: int, frame: object) -> None:
    raise AssertionError(f"one input takes more than {LIMIT} seconds")


def check_input(process: Callable[[], object], counts: Counter[str]) -> None:
    """Process one input, and count whether it was accepted or refused.

    Raises:
        Exception: it was neither accepted nor refused with a `RoundtripError` that has a message.
    """
    # CPU time, since pytest-timeout may use the timer of the clock.
    signal.signal(signal.SIGPROF, _raise_timeout)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        process()
        counts["accepted"] += 1
    except RoundtripError as error:
        assert str(error).strip() and len(str(error)) < 20_000
        counts["refused"] += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def read_recipe(content: bytes, folder: Path, counts: Counter[str]) -> None:
    path = folder / "a.toml"
    path.write_bytes(content)
    check_input(lambda: loader.load_recipe(str(path)), counts)


def read_change(content: bytes, folder: Path, counts: Counter[str]) -> None:
    """Feed a change as of `--set` on the command line."""
    path = folder / "valid.toml"
    if not path.exists():
        path.write_bytes((RECIPES / "quickstart.toml").read_bytes())
    check_input(lambda: loader.load_recipe(str(path), [content.decode("utf-8", "replace")]), counts)


def read_text(content: bytes, folder: Path, counts: Counter[str], kind: str, variant: int) -> None:
    is_zipped = variant % 4 == 0
    path = folder / f"a.{kind}{'.gz' if is_zipped else ''}"
    if is_zipped:
        content = gzip.compress(content) if variant % 8 else content
    path.write_bytes(content)
    columns: Any = [None, ("en", "es"), ("translation.en", "es"), (1, 0)][variant // 8 % 4]
    pairs = variant // 32 % 2 == 0 and kind != "txt"
    if columns is not None and not pairs:
        columns = columns[:1]
    source = TextSource(path=str(path), columns=columns if kind in {"tsv", "csv", "jsonl"} else None)
    if pairs:
        check_input(lambda: list(read_rows(source, [path], ("en", "es"))), counts)
    else:
        check_input(lambda: list(read_rows(source, [path], ("es",))), counts)


def read_parquet(content: bytes, folder: Path, counts: Counter[str]) -> None:
    path = folder / "a.parquet"
    path.write_bytes(content)
    source = TextSource(path=str(path))
    check_input(lambda: list(read_rows(source, [path], ("en", "es"))), counts)


def read_spec(content: bytes, folder: Path, counts: Counter[str]) -> None:
    text = content.decode("utf-8", "replace")
    check_input(lambda: downloads.parse_pypi(text), counts)
    if not text.startswith("pypi:"):
        check_input(lambda: downloads.resolve(text, folder), counts)


def read_wheel(content: bytes, folder: Path, counts: Counter[str]) -> None:
    """Feed an archive with the right hash: no member may be written outside its folder."""
    outside = folder / "wheels"
    outside.mkdir(exist_ok=True)
    (outside / "a.whl").write_bytes(content)
    files = folder / "cache" / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir(parents=True)
    check_input(lambda: downloads._extract(outside / "a.whl", files), counts)
    assert {path.name for path in folder.iterdir()} <= {"wheels", "cache"}, "a member was written outside"
    assert {path.name for path in (folder / "cache").iterdir()} <= {"files"}, "a member was written outside"


def _wheel() -> list[bytes]:
    archives = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("a/text.txt", "Save the file\n" * 20)
            archive.writestr("a/b/other.txt", "x")
        archives.append(buffer.getvalue())
    escaping = [archives[0].replace(b"a/text.txt", path) for path in (b"../../x.tx", b"/tmp/x.txt")]
    return archives + escaping


def _parquet() -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"en": ["a", "b", None], "es": ["c", "d", "e"]}), buffer)
    return [buffer.getvalue()]


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
    """Return the inputs and the function they are fed to, by name."""
    by_name: dict[str, Target] = {
        "recipe": (mutations([path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))]), read_recipe),
        "set": (mutations(CHANGES), read_change),
        "spec": (mutations(SPECS), read_spec),
        "wheel": (mutations(_wheel()), read_wheel),
        "parquet": (mutations(_parquet()), read_parquet),
    }
    for kind, seeds in TEXTS.items():
        strategy = st.tuples(mutations(seeds), st.integers(0, 63))
        by_name[kind] = (strategy, _text_reader(kind))
    return by_name


def _text_reader(kind: str) -> Callable[..., None]:
    return lambda value, folder, counts: read_text(value[0], folder, counts, kind, value[1])


READERS = [*TEXTS, "parquet"]


def fuzz(name: str, num_inputs: int, random_seed: int) -> Counter[str]:
    """Feed inputs to one target, and return how many were accepted and refused."""
    strategy, target = targets()[name]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)

        @seed(random_seed)
        @settings(
            max_examples=num_inputs,
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
    """Feed readers guided by coverage; atheris takes the process over, which exits when the time is over."""
    import atheris

    global read_rows
    for name in [name for name in sys.modules if name.startswith(("roundtrip.data", "polib"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["roundtrip.data", "polib"]):
        from roundtrip.data.readers import read_rows
    counts: dict[str, Counter[str]] = {name: Counter() for name in only}
    folder = Path(tempfile.mkdtemp())
    until = time.monotonic() + seconds
    started = time.monotonic()

    def feed(data: bytes) -> None:
        if len(data) > 2:
            name = only[data[0] % len(only)]
            content = data[2:]
            _, target = known_targets[name]
            target((content, data[1] % 64) if name in TEXTS else content, folder, counts[name])
        if time.monotonic() > until:
            print(json.dumps(_result(counts, started), indent=1), flush=True)
            os._exit(0)

    known_targets = targets()
    corpus = Path(tempfile.mkdtemp())
    for index, name in enumerate(only):
        for number, content in enumerate(TEXTS.get(name, _parquet() if name == "parquet" else [])):
            (corpus / f"{name}-{number}").write_bytes(bytes([index, 1]) + content)
    atheris.Setup([sys.argv[0], str(corpus), "-max_len=4096", "-rss_limit_mb=4096", f"-timeout={LIMIT}"], feed)
    atheris.Fuzz()
    raise AssertionError("atheris.Fuzz does not return")


def _result(counts: dict[str, Counter[str]], started: float) -> dict[str, Any]:
    return {
        "inputs": {name: dict(count) for name, count in counts.items()},
        "total": sum(count.total() for count in counts.values()),
        "seconds": round(time.monotonic() - started, 1),
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
    started = time.monotonic()
    counts = {name: fuzz(name, arguments.inputs // len(names), arguments.seed) for name in names}
    print(json.dumps(_result(counts, started), indent=1))


if __name__ == "__main__":
    main()
