"""translate with files: what is written where, what is refused, and how a stopped command continues."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polib
import pytest

from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli import translate, translate_files
from roundtrip.data.documents.document import Document
from roundtrip.engine import checked_translation
from roundtrip.engine.checked_translation import CheckedTranslation
from roundtrip.engine.long_inputs import CUT
from roundtrip.recipe.plan import Direction
from roundtrip.recipe.schema import Generate
from tests import ROOT
from tests.conftest import toy_pairs
from tests.runs import run_module

Finished = tuple[Path, Path, str]
Shell = Callable[..., tuple[int, str, str]]
HEADER = (
    'msgid ""\nmsgstr ""\n"Language: es\\n"\n"MIME-Version: 1.0\\n"\n'
    '"Content-Type: text/plain; charset=UTF-8\\n"\n"Content-Transfer-Encoding: 8bit\\n"\n'
    '"Plural-Forms: nplurals=2; plural=(n != 1);\\n"\n'
)
SOURCES = [source for source, _ in toy_pairs()[:6]]
PO = HEADER + "".join(f'\n#: a.py:{i}\nmsgid "{source}"\nmsgstr ""\n' for i, source in enumerate(SOURCES))


@pytest.fixture
def upper(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let translations be the sources in upper case, broken where they have a `!`; return the texts as they come."""
    asked: list[str] = []

    def translate_checked(forward: Any, texts: list[str], *rest: Any) -> list[CheckedTranslation]:
        asked.extend(texts)
        return [CheckedTranslation(text.upper(), "placeholder lost" if "!" in text else "") for text in texts]

    monkeypatch.setattr(translate_files, "translate_checked", translate_checked)
    return asked


def test_a_catalogue_is_translated_by_a_run(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "in.po").write_text(PO)
    done = run_module("roundtrip", "translate", str(finished[1]), "in.po", "out.po", "--to", "es", cwd=tmp_path)
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert "in.po -> out.po: 6 texts translated" in done.stderr
    entries = list(polib.pofile(str(tmp_path / "out.po")))
    assert all(entry.fuzzy and entry.msgstr for entry in entries) and len(entries) == 6
    piped = run_module("roundtrip", "translate", str(finished[1]), "--to", "es", stdin="\n".join(SOURCES) + "\n")
    assert [entry.msgstr for entry in entries] == piped.stdout.splitlines()
    text = (tmp_path / "out.po").read_text()
    assert re.sub(r'msgstr ".+"', 'msgstr ""', text.replace("#, fuzzy\n", "")) == PO
    assert not list(tmp_path.glob(".*"))
    if shutil.which("msgfmt"):
        subprocess.run(["msgfmt", "--check", "-o", "/dev/null", tmp_path / "out.po"], check=True)


def test_samples_are_chosen_with_the_other_direction(finished: Finished, tmp_path: Path, shell: Shell) -> None:
    Path("a.txt").write_text(SOURCES[0] + "\n")
    code, out, errors = shell(
        translate, str(finished[1]), "a.txt", "b.txt", "--to", "es", "--samples", "3", "--explain", "json"
    )
    row = json.loads(out)
    assert code == 0 and row["source"] == SOURCES[0], errors
    assert row["translation"] == Path("b.txt").read_text().strip() and 0 <= row["chrf"] <= 100 and row["back"]


def test_a_pipe_is_explained(finished: Finished) -> None:
    stdin = f"{SOURCES[0]}\n\n{SOURCES[1]}\n"
    done = run_module("roundtrip", "translate", str(finished[1]), "--to", "es", "--explain", "columns", stdin=stdin)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [SOURCES[0], "", SOURCES[1]] and all(len(row) == 4 for row in rows)


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), ["", "A", "", "CUT", ""]), (("--keep-broken", "--samples", "2"), ["B %S", "A", "", "CUT", ""])],
)
def test_lines_of_a_pipe_keep_their_placeholders(
    finished: Finished, shell: Shell, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], expected: list[str]
) -> None:
    problems = {"b %s": "printf placeholder: missing %s", "long": "too long", "cut": CUT}

    def translated(forward: Any, texts: list[str], settings: Any, reverse: Any, samples: int) -> Any:
        assert samples == (2 if options else 0) and (reverse is not None) == bool(samples)
        return [CheckedTranslation("" if each == "long" else each.upper(), problems.get(each, "")) for each in texts]

    monkeypatch.setattr(checked_translation, "translate_checked", translated)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"b %s\na\n\ncut\nlong\n")))
    code, out, errors = shell(translate, str(finished[1]), "--to", "es", *options)
    assert code == 2 and out.split("\n") == [*expected, ""]
    assert "line 1: printf placeholder: missing %s\n" in errors and f"line 4: {CUT}" in errors
    assert f"{2 - len(options) // 3} line" in errors and "line 5: too long" in errors


@pytest.mark.parametrize(("options", "names"), [((), ["en-es"]), (("--samples", "2"), ["en-es", "es-en"])])
def test_directions_are_loaded_once(
    finished: Finished, shell: Shell, upper: list[str], monkeypatch: pytest.MonkeyPatch, options: Any, names: list[str]
) -> None:
    loaded, load = list[list[str]](), trained_models.load_directions

    def counted(run: Any, wanted: Any, *rest: Any) -> Any:
        loaded.append([each.name for each in wanted])
        return load(run, wanted, *rest)

    monkeypatch.setattr(trained_models, "load_directions", counted)
    Path("a.txt").write_text("one\n")
    assert shell(translate, str(finished[1]), "a.txt", "b.txt", "--to", "es", *options)[0] == 0
    assert loaded == [names]


def test_a_folder_keeps_its_tree(finished: Finished, tmp_path: Path, shell: Shell, upper: list[str]) -> None:
    for name, content in {"a.po": PO, "deep/b.txt": "one\n\ntwo!\n", "deep/c.mo": "x", ".hidden/d.txt": "x"}.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code, _, errors = shell(translate, str(finished[1]), "in", "in/out", "--to", "es")
    assert code == 0, errors
    written = {str(path.relative_to("in/out")) for path in Path("in/out").rglob("*") if path.is_file()}
    assert written == {"a.po", "deep/b.txt"}
    assert Path("in/out/deep/b.txt").read_text() == "ONE\n\ntwo!\n"
    assert "in/deep/b.txt:3: left as it is: placeholder lost" in errors
    assert "in/deep/b.txt -> in/out/deep/b.txt: 1 text translated, 1 left as they are" in errors
    assert upper == [*SOURCES, "one", "two!"]
    code, _, errors = shell(translate, str(finished[1]), "in", "in/out", "--to", "es")
    assert code == 2 and "exists already" in errors
    assert shell(translate, str(finished[1]), "in", "in/out", "--to", "es", "--force", "--keep-broken")[0] == 0
    assert Path("in/out/deep/b.txt").read_text() == "ONE\n\nTWO!\n"


def test_files_are_changed_in_place(finished: Finished, tmp_path: Path, shell: Shell, upper: list[str]) -> None:
    Path("a.po").write_text(PO)
    arguments = (str(finished[1]), "a.po", "--to", "es", "--in-place", "--no-mark")
    code, _, errors = shell(translate, *arguments)
    assert code == 0 and "#, fuzzy" not in Path("a.po").read_text(), errors
    stat = Path("a.po").stat()
    code, _, errors = shell(translate, *arguments)
    assert code == 0 and "0 texts translated, 6 translated before" in errors and Path("a.po").stat() == stat
    assert len(upper) == 6
    Path("link.po").symlink_to("a.po")
    shell(translate, str(finished[1]), "link.po", "--to", "es", "--in-place", "--retranslate", "all")
    assert len(upper) == 12 and Path("link.po").is_symlink() and "#, fuzzy" in Path("a.po").read_text()


def test_a_stopped_command_continues(
    finished: Finished, tmp_path: Path, shell: Shell, upper: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.txt").write_text("one\ntwo\n")
    Path("b.txt").write_text("three\nfour\n")
    whole = Document.write

    def stop(document: Document, translations: Any) -> bytes:
        if document.path.name == "b.txt":
            raise KeyboardInterrupt
        return whole(document, translations)

    arguments = (str(finished[1]), "a.txt", "b.txt", "out", "--to", "es")
    with monkeypatch.context() as patch:
        patch.setattr(Document, "write", stop)
        code, _, errors = shell(translate, *arguments)
    assert code == 130 and "repeat the same command to continue" in errors
    assert sorted(path.name for path in tmp_path.rglob("*.txt")) == ["a.txt", "a.txt", "b.txt"]
    assert shell(translate, *arguments, "--samples", "2")[0] == 2, "other settings do not use what was kept"
    assert upper == ["one", "two", "three", "four"]
    code, _, errors = shell(translate, *arguments)
    assert code == 0 and len(upper) == 4 and "a.txt -> out/a.txt: complete before" in errors, errors
    assert Path("out/b.txt").read_text() == "THREE\nFOUR\n" and not list(tmp_path.glob(".*"))


@pytest.fixture
def stopped(
    finished: Finished, tmp_path: Path, shell: Shell, upper: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, ...]:
    """Return the arguments of a command that has written out/a.txt, and was stopped before out/b.txt."""
    Path("a.txt").write_text("one\ntwo\n")
    Path("b.txt").write_text("three\n")
    whole = Document.write
    arguments = (str(finished[1]), "a.txt", "b.txt", "out", "--to", "es")

    def stop(document: Document, translations: Any) -> bytes:
        if document.path.name == "b.txt":
            raise KeyboardInterrupt
        return whole(document, translations)

    with monkeypatch.context() as patch:
        patch.setattr(Document, "write", stop)
        assert shell(translate, *arguments)[0] == 130
    return arguments


def test_outputs_that_changed_are_not_finished(stopped: tuple[str, ...], shell: Shell) -> None:
    Path("out/a.txt").write_text("edited\n")
    code, _, errors = shell(translate, *stopped)
    assert code == 2 and "out/a.txt: exists already" in errors and Path("out/a.txt").read_text() == "edited\n"
    Path("out/a.txt").unlink()
    assert shell(translate, *stopped)[0] == 0 and Path("out/a.txt").read_text() == "ONE\nTWO\n"


@pytest.mark.parametrize(
    "option",
    [("--retranslate", "all"), ("--no-mark",), ("--keep-broken",), ("--from-column", "a"), ("--to-column", "a")],
)
def test_what_another_command_has_finished_is_not_skipped(
    stopped: tuple[str, ...], shell: Shell, option: tuple[str, ...], upper: list[str]
) -> None:
    code, _, errors = shell(translate, *stopped, *option)
    assert code == 2 and "exists already" in errors
    code, _, errors = shell(translate, *stopped, *option, "--force")
    assert code == 0 and "2 texts translated" in errors and upper == ["one", "two", "three"]


@pytest.mark.parametrize("samples", [0, 2])
def test_what_is_kept_depends_on_all_weights_that_are_used(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    arguments, asked = SimpleNamespace(stage="best", samples=samples), list[str]()
    monkeypatch.setattr(RunFolder, "recorded", lambda _, *parts: asked.extend(part.name for part in parts))
    run, settings = RunFolder(finished[1]), Generate()
    translate_files._key(run, Direction("en", "es"), settings, arguments)  # type: ignore[arg-type]
    assert asked == (["en-es", "es-en"] if samples else ["en-es"])


def test_finished_files_are_explained_too(
    stopped: tuple[str, ...], shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate_files, "back_translations", lambda _, pairs, *rest: [("x", 1.0) for _ in pairs])
    code, out, _ = shell(translate, *stopped, "--explain", "json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["translation"] for row in rows] == ["ONE", "TWO", "THREE"]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    finished: Finished, tmp_path: Path, shell: Shell, upper: list[str]
) -> None:
    Path("a.txt").write_text("one\n")
    Path("b.po").write_text("{}\n")
    Path("c.po").write_text(PO.replace("Language: es", "Language: fr"))
    code, _, errors = shell(translate, str(finished[1]), "a.txt", "b.po", "c.po", "out", "--to", "es")
    assert code == 2 and Path("out/a.txt").read_text() == "ONE\n" and len(list(Path("out").iterdir())) == 1
    assert "left alone: b.po:1: not a gettext catalogue" in errors and "translations are in 'fr'" in errors
    assert "2 of 3 files could not be read" in errors
    code, _, errors = shell(translate, str(finished[1]), "b.po", "d.po", "--to", "es")
    assert code == 2 and errors.startswith("error: b.po:1: not a gettext catalogue")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("a.txt",), "there is no output"),
        (("a.txt", "a.txt"), "is an input too"),
        (("a.txt", "b.txt"), "exists already"),
        (("a.txt", "new.po"), "in the format of a.txt"),
        (("a.txt", "folder/a.txt", "new"), "two files would be written there"),
        (("missing.txt", "new.txt"), "no such file"),
        (("empty", "new"), "nothing in it that can be translated"),
        (("a.txt", "/dev/null"), "cannot be written"),
        (("a.txt", "a.txt/x.txt"), "cannot be written"),
        (("--force",), "is for files"),
        (("--from-column", "0"), "is for files"),
        (("a.txt", "new.txt", "--samples", "0"), "not a number from 1 to 1000"),
    ],
)
def test_mistakes_are_named(
    finished: Finished, tmp_path: Path, shell: Shell, arguments: tuple[str, ...], problem: str
) -> None:
    for name in ("a.txt", "b.txt", "folder/a.txt", "empty/x.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n")
    code, _, errors = shell(translate, str(finished[1]), *arguments, "--to", "es")
    assert code == 2 and problem in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("new*")) and (tmp_path / "b.txt").read_text() == "x\n"


XLIFF = (
    '<xliff version="1.2"><file source-language="en" original="a" datatype="plaintext"><body><trans-unit id="1">'
    "<source>one</source></trans-unit></body></file></xliff>"
)
TMX = '<tmx version="1.4"><header srclang="en"/><body><tu><tuv xml:lang="en"><seg>one</seg></tuv></tu></body></tmx>'
SHOWN = {
    "app.po": PO,
    "locale/es/LC_MESSAGES/django.po": PO,
    "messages.xlf": XLIFF,
    "memory.tmx": TMX,
    "products.csv": "en,price\none,1\n",
    "products.tsv": "name\tprice\none\t1\n",
    "data.jsonl": '{"text": {"body": "one"}}\n',
    "film.srt": "1\n00:00:01,000 --> 00:00:02,000\none\n",
    "notes.txt": "one\n",
    "more.txt": "one\n",
    "manual/chapter/one.txt": "one\n",
}


def test_the_commands_of_the_page_run(finished: Finished, tmp_path: Path, shell: Shell, upper: list[str]) -> None:
    page = (ROOT / "docs" / "translate.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m roundtrip translate runs/quickstart (.*)$", page, re.M)
    assert len(commands) == len(re.findall(r"^python", page, re.M)) == 12
    for name, content in SHOWN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for command in commands:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        code, out, errors = shell(translate, str(finished[1]), *command.split())
        assert code == 0 and "1 text translated" in errors or "6 texts translated" in errors, errors
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        written = [path for path, data in after.items() if data != before.get(path)]
        assert written and all(b"ONE" in after[path] or path.suffix == ".po" for path in written)
        assert bool(out) == ("--explain" in command)
