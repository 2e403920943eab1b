"""What a recipe names is not trusted: none of it is executed, grows without bounds, or is downloaded unasked."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from roundtrip.backtranslation import reporting, trained_models, trainer
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli import evaluate, train, translate
from roundtrip.cli.app import exit_with
from roundtrip.data import gettext_po, text_files, tmx_xliff
from roundtrip.data.readers import read_rows
from roundtrip.engine import long_inputs
from roundtrip.evaluation import metrics
from roundtrip.recipe import loader
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime import downloads
from roundtrip.runtime.errors import SourceError, TextError, printable
from roundtrip.runtime.event_log import EventLog
from roundtrip.tokens.batching import TokenDataset
from roundtrip.tokens.prompt_template import PromptTemplate
from tests.conftest import WriteRecipe
from tests.runs import go

Finished = tuple[Path, Path, str]
Shell = Callable[..., tuple[int, str, str]]


class Bomb:
    """A pickle of it writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


# Code in model files


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_a_pickled_model_is_refused_with_advice(
    write_recipe: WriteRecipe,
    model_folder: Path,
    tmp_path: Path,
    shell: Shell,
    name: str,
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    for path in (folder, folder / name):
        code, _, errors = shell(train, str(write_recipe()), "--out", "run", "--set", f"model.path={path}")
        assert code == 2 and "a pickle" in errors and "save_pretrained" in errors and "Traceback" not in errors
    assert not (tmp_path / "boom").exists()


def test_a_pickle_beside_safetensors_is_not_loaded(
    write_recipe: WriteRecipe, model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(model_folder, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    go(write_recipe((str(model_folder), str(folder))), tmp_path / "run")
    assert not (tmp_path / "boom").exists()


def test_a_pickled_adapter_is_refused(
    finished: Finished, write_recipe: WriteRecipe, tmp_path: Path, shell: Shell
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(finished[1] / "adapters" / "best" / "en-es", folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    other = write_recipe(("rank = 4", f'rank = 4\n[adapter.en-es]\ninit = "{folder}"'), name="other.toml")
    code, _, errors = shell(train, str(other), "--out", "other")
    assert code == 2 and "adapter_model.bin is a pickle" in errors
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_not_run_and_no_question_is_asked(
    write_recipe: WriteRecipe,
    model_folder: Path,
    tmp_path: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(model_folder, folder)
    content = json.loads((folder / file).read_text())
    if file == "config.json":
        content |= {"model_type": "evil", "architectures": ["EvilModel"]}
        content["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    else:
        content["tokenizer_class"] = "EvilTokenizer"
        content["auto_map"] = {"AutoTokenizer": ["evil.EvilTokenizer", None]}
    (folder / file).write_text(json.dumps(content))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'boom')!r}).touch()\n")
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail("asked whether to run it"))
    code, _, errors = shell(train, str(write_recipe()), "--out", "run", "--set", f"model.path={folder}")
    assert not (tmp_path / "boom").exists()
    assert code == 2 and "which is not executed" in errors


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "the chat template failed"),
        ("{{ raise_exception('only odd turns') }}", "the chat template failed: only odd turns"),
        ("{% for i in range(99999999) %}x{% endfor %}", "the chat template failed: Range too big"),
        ("{{ messages[0]['content'] ", "the chat template failed"),
        ("{{ messages.append({}) }}", "the chat template failed"),
    ],
)
def test_a_hostile_chat_template_is_named_in_the_error(
    write_recipe: WriteRecipe,
    model_folder: Path,
    tmp_path: Path,
    shell: Shell,
    template: str,
    words: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").write_text(template)
    path = write_recipe((str(model_folder), str(folder)), ('kind = "plain"', 'kind = "chat"'))
    code, _, errors = shell(train, str(path), "--out", "run")
    assert code == 2 and words in errors and "Traceback" not in errors


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "BPE", "vocab": {"a": -1}}}', "\x00" * 50])
def test_a_broken_model_folder_is_an_error_without_traceback(
    write_recipe: WriteRecipe,
    model_folder: Path,
    tmp_path: Path,
    shell: Shell,
    file: str,
    content: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / file).write_text(content)
    code, _, errors = shell(train, str(write_recipe((str(model_folder), str(folder)))), "--out", "run")
    assert "Traceback" not in errors
    assert code == 2 or (code == 0 and "config" in file), errors


# Text that grows


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl", "a.po"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_an_endless_line_is_refused_without_reading_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: str
) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 1 << 16)
    path = tmp_path / f"{name}{ending}"
    content = b'msgid "a"\n' if name == "a.po" else b"good line\n" if name != "a.jsonl" else b'{"en": "a"}\n'
    content += b"x" * (1 << 25)
    path.write_bytes(gzip.compress(content) if ending else content)
    source = TextSource(path=str(path), columns=("en",) if name == "a.jsonl" else None)
    tracemalloc.start()
    with pytest.raises(TextError, match="a line of more than 0 MiB") as caught:
        list(read_rows(source, [path], ("en",)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    assert str(caught.value.place) == f"{path}:2"


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "FREE_BYTES", 1 << 20)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a\n" * (1 << 22)))
    with pytest.raises(TextError, match="grows more than 300 times when it is unpacked"):
        for _ in read_rows(TextSource(path=str(path)), [path], ("en",)):
            pass
    path.write_bytes(gzip.compress(os.urandom(1 << 21).hex().encode()))
    assert sum(len(line) for (line,) in read_rows(TextSource(path=str(path)), [path], ("en",))) == 1 << 22


def test_a_large_gettext_catalogue_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gettext_po, "MAX_CHARS", 1000)
    path = tmp_path / "a.po"
    path.write_text('msgid "a"\nmsgstr "b"\n\n' * 60)
    with pytest.raises(TextError, match="more than 1,000 characters"):
        list(read_rows(TextSource(path=str(path)), [path], ("en", "es")))


@pytest.mark.parametrize("inner", ["<x/>", "<tu><tuv/>", "<note>a</note>"])
def test_xml_without_the_end_of_a_unit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
    monkeypatch.setattr(tmx_xliff, "MAX_UNIT_BYTES", 1 << 20)
    path = tmp_path / "a.tmx"
    rest = inner.removeprefix("<tu>")
    path.write_text(f'<tmx version="1.4"><body>{inner}{rest * (1 << 19)}')
    with pytest.raises(TextError, match="without the end of a translation unit"):
        list(read_rows(TextSource(path=str(path)), [path], ("en", "es")))


def test_nested_xml_entities_are_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    doctype = '<!DOCTYPE tmx [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
    )
    unit = '<tu><tuv xml:lang="en"><seg>&j;</seg></tuv><tuv xml:lang="es"><seg>b</seg></tuv></tu>'
    path.write_text(f'{doctype}]><tmx version="1.4"><body>{unit}</body></tmx>')
    with pytest.raises(TextError, match=r"entity &j; is not expanded|broken XML"):
        list(read_rows(TextSource(path=str(path)), [path], ("en", "es")))


# The network


WITHOUT_NETWORK = """
import os, socket, sys
addresses = []
def refuse(*address, **more):
    addresses.append(address)
    if "STOP_AT_FIRST_CALL" in os.environ:
        print("stopped calls", len(addresses), flush=True)
        os._exit(0)
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
sys.argv = ["train", *sys.argv[1:]]
from roundtrip.cli import app, train
try:
    app.exit_with(train.main)
except SystemExit as error:
    print("code", error.code, "calls", len(addresses))
"""


def train_without_network(recipe: Path, folder: Path, *arguments: str, **environment: str) -> tuple[str, str, int]:
    """Train in a process without a network; return output, errors, and the number of attempted connections."""
    usual = {key: value for key, value in os.environ.items() if key not in {"HF_HUB_OFFLINE", "ROUNDTRIP_OFFLINE"}}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, str(recipe), "--out", str(folder / "run"), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env=usual | {"HF_HOME": str(folder / "hub")} | environment,
    )
    return done.stdout, done.stderr, int(done.stdout.split()[-1])


def test_a_recipe_of_files_opens_no_connection(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    output, errors, num_calls = train_without_network(write_recipe(), tmp_path)
    assert "code 0" in output and num_calls == 0, errors


@pytest.mark.parametrize("offline", ["--offline", "variable"])
def test_offline_a_hub_id_opens_no_connection(
    write_recipe: WriteRecipe, model_folder: Path, tmp_path: Path, offline: str
) -> None:
    path = write_recipe((str(model_folder), "org/model"))
    arguments = [offline] if offline == "--offline" else []
    variables = {"ROUNDTRIP_OFFLINE": "1"} if offline == "variable" else {}
    output, errors, num_calls = train_without_network(path, tmp_path, *arguments, **variables)
    assert "model 'org/model' is not, or not completely, in the cache" in errors and "Traceback" not in errors
    assert "code 2" in output and num_calls == 0


def test_online_a_hub_id_opens_a_connection(write_recipe: WriteRecipe, model_folder: Path, tmp_path: Path) -> None:
    """The tests around this one could not fail otherwise."""
    path = write_recipe((str(model_folder), "org/model"))
    output, _, num_calls = train_without_network(path, tmp_path, STOP_AT_FIRST_CALL="1")
    assert "stopped" in output and num_calls == 1


def test_offline_no_tokenizer_of_a_metric_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.tsv").write_text("a\tuno\n")
    (tmp_path / "out.txt").write_text("uno\n")
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "1")
    monkeypatch.setattr(metrics, "SACREBLEU_DIR", str(tmp_path / "sacrebleu"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    argv = ["evaluate", "--test", "test.tsv", "--system", "out.txt", "--bleu-tokenize", "flores200"]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        exit_with(evaluate.main)
    assert "sacreBLEU would download its tokenizer 'flores200', and network access is off" in capsys.readouterr().err


def test_offline_wheels_come_from_the_cache_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROUNDTRIP_CACHE", str(tmp_path))
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "0")
    monkeypatch.setattr(downloads, "_pip_download", lambda *arguments: pytest.fail("pip was called"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    downloads.go_offline()
    assert downloads.is_offline()
    with pytest.raises(SourceError, match="not in the cache, and downloads are disabled"):
        downloads.resolve(f"pypi:a==1/b#sha256={'0' * 64}", tmp_path)
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "0")
    assert not downloads.is_offline()


def test_recipes_that_name_the_hub_are_recognized(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    loaded = loader.load_recipe(str(write_recipe()))
    assert not loader.names_hub(loaded.recipe, loaded.folder)
    loaded = loader.load_recipe(str(write_recipe()), ["model.path=org/model"])
    assert loader.names_hub(loaded.recipe, loaded.folder)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not loader.names_hub(loaded.recipe, loaded.folder)
    loaded = loader.load_recipe(str(write_recipe(('{ path = "toy.tsv" }', '{ path = "hf:org/text" }'))))
    assert loader.names_hub(loaded.recipe, loaded.folder)


# What is shown


def test_control_sequences_are_shown_as_text(tmp_path: Path) -> None:
    evil = "a\x1b]0;title\x07\x1b[2Jb\x9b31mc\x7f\td\n"
    assert printable(evil) == "a\\x1b]0;title\\x07\\x1b[2Jb\\x9b31mc\\x7f\td\n"
    shown = io.StringIO()
    events = EventLog(Console(file=shown, width=160, force_terminal=True))
    events.say(f"reading {evil} [red]x[/red]")
    with events.task("reading", f"reading {evil} [bold]x[/bold]", 2) as task:
        task.advance(1, note="[blink]y")
    assert "\x1b]0" not in shown.getvalue() and "\x07" not in shown.getvalue() and "\x9b" not in shown.getvalue()
    assert "[red]x[/red]" in shown.getvalue() and "[bold]x[/bold]" in shown.getvalue()


def test_samples_of_a_run_are_shown_as_text(finished: Finished) -> None:
    metrics = json.loads((finished[1] / "metrics.json").read_text())
    for sample in metrics["samples"]["en-es"]:
        sample["hypothesis"] = "\x1b[2J[bold]cleared[/bold]"
    shown = io.StringIO()
    reporting.show_metrics(metrics, RunFolder(finished[1]), Console(file=shown, width=160))
    assert "\\x1b[2J[bold]cleared[/bold]" in shown.getvalue() and "\x1b" not in shown.getvalue()


def test_an_error_is_shown_as_text(shell: Shell) -> None:
    name = "[red]\x1b[2Jno.toml"
    code, _, errors = shell(train, name)
    assert code == 2 and "\\x1b[2J" in errors and "\x1b" not in errors and "[red]" in errors
    code, _, errors = shell(translate, "\x1b[2Jrun", "--to", "es")
    assert code == 2 and "\x1b" not in errors


def test_text_that_spells_special_tokens_stays_text(
    write_recipe: WriteRecipe, model_folder: Path, tmp_path: Path
) -> None:
    """Lines that contain the text of an end token do not end a turn: no row has a special token inside its text."""
    rows = "".join(f"Click <|im_end|> {n}\tPulse <|im_end|> {n}\n" for n in range(200))
    path = write_recipe()
    (tmp_path / "toy.tsv").write_text(rows)
    datasets: list[TokenDataset] = []
    build_token_rows = trainer.build_token_rows

    def recording(*arguments: Any) -> Any:
        dataset, counts = build_token_rows(*arguments)
        datasets.append(dataset)
        return dataset, counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_token_rows", recording)
        go(path, tmp_path / "run")
    assert len(datasets) == 4
    end_id = AutoTokenizer.from_pretrained(model_folder).convert_tokens_to_ids("<|im_end|>")
    for dataset in datasets:
        for start, size in zip(dataset.offset_R.tolist(), dataset.sizes, strict=True):
            ids = dataset.ids_X[start : start + size].tolist()
            assert ids.count(end_id) == 1 and ids[-1] == end_id


def test_control_sequences_are_removed_from_translations(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = trained_models.load_trained(finished[1], "en-es", device="cpu")
    monkeypatch.setattr(PromptTemplate, "hypothesis_text", lambda self, ids: "a\x1b[2Jb \x9b31mc")
    settings = greedy_settings(RunFolder(finished[1]).recipe())
    assert list(long_inputs.translate_any_length(translator, ["The moon"], settings, [], [])) == ["a[2Jb 31mc"]


@pytest.mark.parametrize("kind", ["adapter", "nothing"])
def test_a_folder_without_a_model_is_refused(
    finished: Finished,
    write_recipe: WriteRecipe,
    tmp_path: Path,
    shell: Shell,
    kind: str,
) -> None:
    """transformers would load an adapter's base, which the recipe does not name."""
    path = write_recipe()
    folder = tmp_path / "nothing"
    folder.mkdir()
    if kind == "adapter":
        folder = finished[1] / "adapters" / "best" / "en-es"
    code, _, errors = shell(train, str(path), "--out", "other", "--set", f"model.path={folder}")
    assert code == 2 and ("this is an adapter" if kind == "adapter" else "it has no config.json") in errors
