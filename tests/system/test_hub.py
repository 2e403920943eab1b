"""Models, data sets and exports on a small hub on loopback, which also fails in each way that the real one may."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub import _tree_cache, constants, file_download
from huggingface_hub.utils import _http, http_backoff

from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.cli import export as export_command
from roundtrip.data.readers import read_rows
from roundtrip.models import base_model
from roundtrip.models.base_model import LoadedModel
from roundtrip.recipe.schema import Model, TextSource
from roundtrip.runtime import downloads
from roundtrip.runtime.errors import Interrupted, RoundtripError, SourceError, TextError
from roundtrip.runtime.hub import hub_requests
from tests.conftest import RECIPE, toy_pairs
from tests.runs import assert_same, end_state, go
from tests.tools.hub_server import Hub, folder_files, serve

# huggingface_hub calls httpx so when it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_secretsecretsecretsecretsecretsecr"
CARD = b"""---
configs:
- config_name: news
  data_files:
  - split: train
    path: news/train.jsonl
  - split: test
    path: news/test.jsonl
- config_name: talks
  data_files: talks.jsonl
---
Text.
"""


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let huggingface_hub and datasets, which read the environment when they are imported, use this address."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "ROUNDTRIP_OFFLINE"):
        monkeypatch.setenv(name, "")  # restored to what it was, also where a test changes it
        monkeypatch.delenv(name)
    changed = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_STORED_TOKENS_PATH": str(cache / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in changed.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": cache / "datasets"}.items():
        monkeypatch.setattr(datasets.config, name, value)
    huggingface_hub.utils.close_session()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process uses, with an empty cache; the pauses between retries are left out."""
    with serve(TOKEN) as served:
        use_hub(monkeypatch, served.url, tmp_path / "hf")
        without_pauses = SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None})
        monkeypatch.setattr(_http, "time", without_pauses)
        monkeypatch.setattr(file_download, "time", without_pauses)
        yield served
    huggingface_hub.utils.close_session()


@pytest.fixture
def model(hub: Hub, model_folder: Path) -> str:
    """The small model on the hub."""
    hub.add("models", "org/model", folder_files(model_folder))
    return "org/model"


def load(name: str = "org/model", revision: str | None = None) -> LoadedModel:
    return base_model.load(Model(path=name, revision=revision, dtype="float32", device="cpu"), Path("/"))


def refusal(name: str = "org/model", revision: str | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        load(name, revision)
    assert TOKEN not in str(caught.value) and caught.value.cure
    return str(caught.value)


def log_in(monkeypatch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    monkeypatch.setenv("HF_TOKEN", token)


# Models


def test_a_model_is_the_same_from_the_hub_and_from_its_folder(hub: Hub, model: str, model_folder: Path) -> None:
    repository = hub.repositories["models", model]
    first = repository.refs["main"]
    repository.refs["v1"] = first
    second = repository.commit(folder_files(model_folder) | {"README.md": b"changed"})
    expected = load(str(model_folder)).digest
    for revision, commit in ((None, second), ("main", second), ("v1", first), (first, first), (second, second)):
        loaded = load(model, revision)
        assert (loaded.commit, loaded.digest) == (commit, expected), revision
    downloads = [request for request in hub.requests if request.startswith("GET /org/model/resolve")]
    assert len(downloads) == len(set(downloads)) and not any("README" in request for request in downloads)


def test_a_slow_hub_is_waited_for(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)  # of which a whole answer takes more
    hub.faults["GET /org/model/resolve"] = "slow"
    load(model)


def test_a_renamed_model_is_found(hub: Hub, model: str) -> None:
    hub.add("models", "old/name", {}, moved_to="org/model")
    assert load("old/name").digest == load(model).digest


def test_a_commit_that_is_in_the_cache_asks_nothing(hub: Hub, model: str) -> None:
    commit = load(model).commit
    hub.requests.clear()
    assert load(model, commit).commit == commit
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "at", "message"),
    [
        (404, "GET /api/models", "the hub has no model 'org/model'"),
        (429, "GET /api/models", "the hub has had too many requests from here\n  wait some minutes"),
        (500, "GET /api/models", "the hub has failed with status 500\n  try again later"),
        (503, "GET /api/models", "the hub has failed with status 503\n  try again later"),
        (429, "GET /org/model/resolve", "too many requests"),
        (500, "GET /org/model/resolve", "the hub has failed with status 500"),
        (503, "HEAD /org/model/resolve", "the hub has failed with status 503"),
        (403, "GET /org/model/resolve", "the token of this machine does not permit it\n  run `hf auth login`"),
        (404, "HEAD /org/model/resolve", "the hub has no model 'org/model'"),
        ("no answer", "GET /api/models", "the hub has not answered within 1 seconds\n.*HF_HUB_DOWNLOAD_TIMEOUT"),
        ("no answer", "GET /org/model/resolve", "the hub has not answered within 1 seconds"),
        ("truncated", "GET /org/model/resolve", "the connection to the hub was interrupted"),
        ("hangs up", "GET /api/models", "the connection to the hub was interrupted"),
        ("missing", "HEAD /org/model/resolve", "a file of model 'org/model' is missing on the hub"),
        ("longer", "HEAD /org/model/resolve", "Consistency check failed: file should be of size"),
        (
            "other bytes",
            "GET /org/model/resolve",
            "the content is not what the hub lists for model 'org/model': .*config.json",
        ),
    ],
)
def test_a_failing_hub_is_named_and_the_next_try_works(
    hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch, fault: Any, at: str, message: str
) -> None:
    hub.faults[at] = fault
    if fault == "no answer":
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    assert re.search(message, text := refusal()), text
    hub.faults.clear()
    load(model)


@pytest.mark.parametrize(
    ("settings", "token", "message"),
    [
        ({"is_private": True}, "", "no model 'org/model', or it is private\n  check the name; .* run `hf auth login`"),
        ({"is_private": True}, "hf_old", "the hub refuses the token of this machine\n  .*unset HF_TOKEN"),
        ({"is_gated": True}, "", "access to model 'org/model' is restricted\n  accept its licence"),
        ({"is_gated": True}, TOKEN, "access to model 'org/model' is restricted\n  accept its licence"),
    ],
)
def test_a_private_or_gated_model_needs_a_token(
    hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, bool], token: str, message: str
) -> None:
    repository = hub.repositories["models", model]
    for name, value in settings.items():
        setattr(repository, name, value)
    log_in(monkeypatch, token)
    assert re.search(message, text := refusal()), text
    repository.is_gated = False
    log_in(monkeypatch)
    load(model)


def test_what_is_not_on_the_hub_is_named(hub: Hub, model: str) -> None:
    assert "the hub has no model 'org/modell', or it is private" in refusal("org/modell")
    assert "model 'org/model' at revision 'v9' has no such branch, tag or commit" in refusal(model, "v9")
    assert "no model 'gpt2'" in refusal("gpt2")
    hub.add("models", "org/empty", {"README.md": b""})
    with pytest.raises(RoundtripError, match="it has no config.json"):
        load("org/empty")
    commit = hub.add("models", "org/half", folder_files_without_weights(hub)).refs["main"]
    with pytest.raises(RoundtripError, match=rf"{commit}\): it has neither model.safetensors nor"):
        load("org/half")


def folder_files_without_weights(hub: Hub) -> dict[str, bytes]:
    (files,) = hub.repositories["models", "org/model"].commits.values()
    return {name: data for name, data in files.items() if not name.endswith(".safetensors")}


@pytest.mark.parametrize("address", ["closed", "unknown", "password"])
def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, hub: Hub, tmp_path: Path, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    host = {"closed": "127.0.0.1", "unknown": "hub.invalid", "password": "user:hunter2@127.0.0.1"}[address]
    use_hub(monkeypatch, f"http://{host}:{port}", tmp_path / "hf")
    text = refusal()
    assert "model.path: the hub cannot be reached" in text and "HF_ENDPOINT" in text and "hunter2" not in text


def test_the_limit_of_time_outlives_a_refused_connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # refuses connections until it listens; then it accepts them, and is silent
        pauses = {"sleep": lambda seconds: listener.listen()}
        monkeypatch.setattr(_http, "time", SimpleNamespace(**vars(_http.time) | pauses))
        give_up = threading.Timer(10, listener.close)
        give_up.start()
        with pytest.raises(SourceError, match="has not answered"), hub_requests("model 'org/model'", "model.path"):
            http_backoff("GET", f"http://127.0.0.1:{listener.getsockname()[1]}", max_retries=1)
        give_up.cancel()


@pytest.mark.parametrize("offline_by", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache_alone(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch, offline_by: str) -> None:
    def go() -> None:
        downloads.go_offline() if offline_by == "--offline" else downloads.forbid_hub()

    go()
    text = refusal()
    assert re.search(rf"'org/model' is not, .*in the cache .*{offline_by}.*\n  run once with network access", text), (
        text
    )
    assert not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "0")
    base_model.load_tokenizer(Model(path=model, dtype="float32", device="cpu"), Path("/"))
    go()
    assert "not completely, in the cache" in refusal(), "its weights are not"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "0")
    commit = load(model).commit
    hub.requests.clear()
    go()
    assert load(model).commit == load(model, "main").commit == commit
    assert not hub.requests


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub: Hub, model: str) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "models--org--model" / "snapshots" / str(load(model).commit)
    for path in (folder / "model.safetensors", folder / "tokenizer.json"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"the content is not what the hub lists for model 'org/model': {path.name}\n" in refusal()
        load(model)
        assert path.read_bytes() == content


def forget_listings() -> None:
    """Let huggingface_hub read its lists of files again, as another process would."""
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()


@pytest.mark.parametrize("damage", ["another hash", "[]", '{"format_version": 1, "files": []}'])
def test_a_damaged_listing_in_the_cache_is_fetched_again(hub: Hub, model: str, damage: str) -> None:
    commit = load(model).commit
    listing = Path(constants.HF_HUB_CACHE) / "models--org--model" / "trees" / f"{commit}.json"
    content = listing.read_text()
    if damage == "another hash":
        first = re.search('"blob_id": "(.)', content[content.index('"config.json"') :])
        assert first
        at = content.index('"config.json"') + first.start(1)
        listing.write_text(content[:at] + ("0" if first[1] != "0" else "1") + content[at + 1 :])
        forget_listings()
        assert "the content is not what the hub lists for model 'org/model': config.json" in refusal()
    else:
        listing.write_text(damage)
    forget_listings()
    load(model)
    assert listing.read_text() == content


def test_a_cache_without_a_listing_is_checked_by_the_names_of_its_blobs(
    hub: Hub, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    commit = str(load(model).commit)
    folder = Path(constants.HF_HUB_CACHE) / "models--org--model"
    downloads.forbid_hub()
    for name in ("model.safetensors", "tokenizer_config.json"):
        (folder / "trees" / f"{commit}.json").unlink(missing_ok=True)
        forget_listings()
        load(model)
        path = folder / "snapshots" / commit / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"the content is not what the hub lists for model 'org/model': {name}\n" in refusal()
        path.write_bytes(content)
    assert "has no list of the files of model 'org/model'" in caplog.text


def test_offline_an_error_of_the_cache_is_not_called_a_missing_file(
    hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(model)
    downloads.forbid_hub()
    for error, message in (
        (PermissionError(13, "Permission denied", "/cache/blob"), "check the permissions of /cache/blob"),
        (RuntimeError("something else"), "failed: RuntimeError: something else"),
    ):
        with pytest.raises(SourceError, match=message), hub_requests("model 'org/model'", "model.path"):
            raise error


def test_a_damaged_link_out_of_the_cache_deletes_nothing_there(hub: Hub, model: str, tmp_path: Path) -> None:
    path = Path(constants.HF_HUB_CACHE) / "models--org--model" / "snapshots" / str(load(model).commit) / "config.json"
    path.unlink()
    (tmp_path / "mine.json").write_text("{}")
    path.symlink_to(tmp_path / "mine.json")
    assert "the content is not what the hub lists" in refusal()
    assert (tmp_path / "mine.json").read_text() == "{}"
    load(model)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(constants.HF_HUB_CACHE).parent.mkdir()
    Path(constants.HF_HUB_CACHE).write_text("a file")
    assert "cannot be kept in the cache" in (text := refusal()) and "HF_HOME" in text, text


# Data sets


@pytest.fixture
def text(hub: Hub) -> str:
    """A data set on the hub with two subsets, one of two splits."""
    pairs = toy_pairs()[:20]
    nested = "".join(json.dumps({"translation": {"en": en, "es": es}}) + "\n" for en, es in pairs)
    lines = [json.dumps({"english": en, "spanish": es}) + "\n" for en, es in pairs]
    files = {"README.md": CARD, "talks.jsonl": nested.encode()}
    files |= {"news/train.jsonl": "".join(lines[:15]).encode(), "news/test.jsonl": "".join(lines[15:]).encode()}
    hub.add("datasets", "org/text", files)
    return "hf:org/text"


def rows(path: str, *columns: str) -> list[tuple[str, ...]]:
    return list(read_rows(TextSource(path=path, columns=columns), [], ("en", "es")))


def text_refusal(path: str) -> str:
    with pytest.raises(TextError) as caught:
        rows(path, "english", "spanish")
    assert TOKEN not in str(caught.value) and caught.value.cure
    return str(caught.value)


def test_subsets_splits_and_columns_of_a_data_set(text: str) -> None:
    pairs = toy_pairs()[:20]
    assert rows(f"{text}#subset=news", "english", "spanish") == pairs[:15]
    assert rows(f"{text}#subset=news&split=test", "english", "spanish") == pairs[15:]
    assert rows(f"{text}#subset=talks", "translation.en", "translation.es") == pairs


def test_a_data_set_is_read_at_a_revision(hub: Hub, text: str) -> None:
    repository = hub.repositories["datasets", "org/text"]
    first, before = repository.refs["main"], rows(f"{text}#subset=news", "english", "spanish")
    changed = json.dumps({"english": "new", "spanish": "nuevo"}) + "\n"
    repository.commit(repository.commits[first] | {"news/train.jsonl": changed.encode()})
    assert rows(f"{text}#subset=news", "english", "spanish") == [("new", "nuevo")]
    assert rows(f"{text}#subset=news&revision={first}", "english", "spanish") == before
    refused = text_refusal(f"{text}#subset=news&revision=nowhere")
    assert "data set 'org/text' has no such branch, tag or commit" in refused, refused


def test_what_a_data_set_has_not_is_named(text: str) -> None:
    assert "'talks'" in (refused := text_refusal(f"{text}#subset=tals")) and "'news'" in refused, refused
    assert "test" in (refused := text_refusal(f"{text}#subset=news&split=dev")), refused
    assert "no column 'english'" in text_refusal(f"{text}#subset=talks")
    assert "the hub has no data set 'org/other', or it is private" in text_refusal("hf:org/other")


def test_a_private_data_set_needs_a_token(hub: Hub, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["datasets", "org/text"].is_private = True
    assert "hf:org/text: the hub has no data set 'org/text', or it is private\n" in text_refusal(f"{text}#subset=news")
    log_in(monkeypatch)
    assert len(rows(f"{text}#subset=news", "english", "spanish")) == 15
    hub.repositories["datasets", "org/text"].is_gated = True
    assert "access to data set 'org/text' is restricted\n  accept its licence" in text_refusal(f"{text}#subset=news")


def test_offline_a_data_set_is_that_which_datasets_has_stored(
    hub: Hub, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    cure = """python -c 'from datasets import load_dataset; load_dataset("org/text", "news")'"""
    assert cure in text_refusal(f"{text}#subset=news") and not hub.requests
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    datasets.load_dataset("org/text", "news")
    hub.requests.clear()
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    assert rows(f"{text}#subset=news&split=test", "english", "spanish") == toy_pairs()[15:20]
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "at", "message"),
    [
        (503, "GET /datasets/org/text/resolve", "the hub has failed with status 503"),
        (429, "GET /datasets/org/text/resolve", "the hub has had too many requests"),
        (500, "GET /api/datasets", "the hub has failed with status 500"),
        (403, "HEAD /datasets/org/text/resolve", "the token of this machine does not permit it"),
        ("no answer", "GET /api/datasets", "the hub has not answered within 1 seconds"),
        ("truncated", "GET /datasets/org/text/resolve", "the connection to the hub was interrupted"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_named(
    hub: Hub, text: str, monkeypatch: pytest.MonkeyPatch, fault: Any, at: str, message: str
) -> None:
    hub.faults[at] = fault
    if fault == "no answer":
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    assert message in (refused := text_refusal(f"{text}#subset=news")), refused
    hub.faults.clear()
    assert len(rows(f"{text}#subset=news", "english", "spanish")) == 15


# Runs


@dataclass
class HubRun:
    """A finished run whose base and text are private on a hub, and what the run has shown."""

    hub: Hub
    recipe: Path
    folder: Path
    commit: str  # of the base
    shown: str


SENTENCES = ["I see the red house here.", "We like the small moon far away."]


@pytest.fixture(scope="module")
def hub_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubRun]:
    """A run that was stopped and resumed while the hub was down, and after the branch of its base had moved on."""
    tmp_path = tmp_path_factory.mktemp("hub")
    step = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as stop, serve(TOKEN) as hub:
        use_hub(patch, hub.url, tmp_path / "hf")
        log_in(patch)
        base = hub.add("models", "org/model", folder_files(model_folder), is_private=True)
        lines = "".join(json.dumps({"english": en, "spanish": es}) + "\n" for en, es in toy_pairs())
        hub.add("datasets", "org/text", {"all.jsonl": lines.encode()}, is_private=True)
        text = RECIPE.format(model="org/model").replace('dtype = "float32"', 'dtype = "float32"\nrevision = "main"')
        text = text.replace('"toy.tsv" }', '"hf:org/text", columns = ["english", "spanish"] }')
        (tmp_path / "hub.toml").write_text(text, encoding="utf-8")

        def stopping(self: Trainer, *arguments: Any) -> Any:
            hub.faults[""] = 503
            if self.state.total_steps() == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *arguments)

        stop.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted):
            go(tmp_path / "hub.toml", tmp_path / "run")
        stop.undo()
        asked, commit = len(hub.requests), base.refs["main"]
        other = folder_files(model_folder)
        other["model.safetensors"] = other["model.safetensors"][:-4] + bytes(4)
        base.commit(other)
        shown = go(tmp_path / "hub.toml", tmp_path / "run", resume=True)
        assert len(hub.requests) == asked, hub.requests[asked:]
        hub.faults.clear()
        yield HubRun(hub, tmp_path / "hub.toml", tmp_path / "run", commit, shown)


def translations(run: HubRun) -> list[str]:
    return trained_models.load_trained(run.folder, "en-es", device="cpu").translate(SENTENCES).texts


def test_a_run_from_the_hub_is_that_of_files_whatever_the_hub_does_later(
    hub_run: HubRun, finished: tuple[Path, Path, str]
) -> None:
    assert_same(end_state(hub_run.folder), end_state(finished[1]))
    assert set(RunFolder(hub_run.folder).manifest().base_commits.values()) == {hub_run.commit}


def test_a_run_uses_the_commit_that_it_began_with(hub_run: HubRun, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, expected = hub_run.hub, translations(hub_run)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert translations(hub_run) == expected and not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-2")
    assert translations(hub_run) == expected
    assert {request.split("/")[4] for request in hub.requests if "/resolve/" in request} == {hub_run.commit}
    base = hub.repositories["models", "org/model"]
    removed = base.commits.pop(hub_run.commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-3")
    with pytest.raises(SourceError, match=f"at revision '{hub_run.commit}' has no such branch, tag or commit"):
        translations(hub_run)
    base.commits[hub_run.commit] = removed


def test_a_token_is_written_nowhere(hub_run: HubRun, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path for path in hub_run.folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in hub_run.shown


# Exports


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo at its end what commands of a test set for the whole process."""
    for name in ("ROUNDTRIP_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def push(shell: Any, run: Path, out: Path, name: str, *options: str) -> tuple[int, str, str]:
    result: tuple[int, str, str] = shell(export_command, str(run), str(out), "--push", name, *options)
    assert TOKEN not in "".join(map(str, result)) and "Traceback" not in result[2]
    return result


@pytest.mark.usefixtures("online")
def test_what_is_pushed_translates_the_same(hub_run: HubRun, shell: Any, tmp_path: Path) -> None:
    hub = hub_run.hub
    code, shown, errors = push(shell, hub_run.folder, tmp_path / "out", "org/toy")
    assert code == 0 and f"{hub.url}/org/toy-es-en/commit/" in shown, errors
    repository = hub.repositories["models", "org/toy-en-es"]
    files = repository.commits[repository.refs["main"]]
    assert repository.is_private and len(repository.commits) == 2, "its creation and one commit"
    assert b'from_pretrained("org/toy-en-es")' in files["README.md"] and TOKEN.encode() not in b"".join(files.values())
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", hub_run.commit)
    folder = Path(huggingface_hub.snapshot_download("org/toy-en-es"))
    assert trained_models.load_exported(folder, "cpu").translate(SENTENCES).texts == translations(hub_run)
    by_name = trained_models.load_exported(folder, "cpu", base="org/model")
    assert by_name.base.commit == hub_run.commit, "its branch has moved on"
    # An update replaces the adapter by a model, and what others have added stays.
    repository.commit(files | {"notes.txt": b"mine"})
    options = ("--to", "es", "--merged", "--public")
    code, shown, errors = push(shell, hub_run.folder, tmp_path / "merged", "org/toy", *options)
    assert code == 0, errors
    files = repository.commits[repository.refs["main"]]
    assert {"model.safetensors", "notes.txt"} <= files.keys() and "adapter_config.json" not in files
    assert repository.is_private, "an existing one stays as it is"
    assert load("org/toy-en-es").digest == load(str(tmp_path / "merged" / "en-es")).digest


@pytest.mark.usefixtures("online")
def test_a_run_of_files_is_pushed_as_well(
    hub_run: HubRun, finished: tuple[Path, Path, str], shell: Any, tmp_path: Path
) -> None:
    code, _, errors = push(shell, finished[1], tmp_path / "out", "org/files", "--public")
    assert code == 0, errors
    repository = hub_run.hub.repositories["models", "org/files-es-en"]
    pushed, written = repository.commits[repository.refs["main"]], folder_files(tmp_path / "out" / "es-en")
    assert pushed.keys() - written.keys() == {".gitattributes"} and not repository.is_private
    assert {name: pushed[name] for name in written if name != "README.md"} == {
        name: data for name, data in written.items() if name != "README.md"
    }


@pytest.mark.usefixtures("online")
def test_a_repository_of_something_else_is_refused(
    hub_run: HubRun, shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_run.hub
    hub.add("models", "org/used-en-es", {"config.json": b"{}"})
    code, shown, errors = push(shell, hub_run.folder, tmp_path / "out", "org/used")
    assert (code, shown) == (2, "") and "'org/used-en-es' has config.json, and is no export of roundtrip" in errors
    assert push(shell, hub_run.folder, tmp_path / "out", "org/other", "--to", "en")[0] == 0
    hub.repositories["models", "org/other-en-es"] = hub.repositories["models", "org/other-es-en"]
    code, _, errors = push(shell, hub_run.folder, tmp_path / "out2", "org/other")
    assert code == 2 and "'org/other-en-es' has an export of es-en, not of en-es" in errors
    for name in ("toy", "org/toy/x", "org/--", "https://org/toy"):
        code, _, errors = push(shell, hub_run.folder, tmp_path / "out2", name)
        assert code == 2 and "is no name of a repository" in errors, errors
    assert "network access is off" in push(shell, hub_run.folder, tmp_path / "out2", "org/toy", "--offline")[2]
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    code, _, errors = push(shell, hub_run.folder, tmp_path / "out2", "org/toy")
    assert code == 2 and "this machine has no token of the hub\n  run `hf auth login`" in errors
    log_in(monkeypatch, "hf_read")
    code, _, errors = push(shell, hub_run.folder, tmp_path / "out2", "org/toy")
    assert code == 2 and "the hub refuses the token of this machine" in errors
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize(
    ("fault", "at"),
    [
        (403, "POST /api/repos/create"),
        ("hangs up", "PUT /lfs"),
        (500, "PUT /lfs"),
        (412, "POST /api/models/org/broken-es-en/commit"),
    ],
)
@pytest.mark.usefixtures("online")
def test_an_upload_that_fails_says_how_to_repeat_it(
    hub_run: HubRun, shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, at: str
) -> None:
    monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None}))
    hub_run.hub.faults[at] = fault
    code, shown, errors = push(shell, hub_run.folder, tmp_path / "out", "org/broken", "--to", "en")
    hub_run.hub.faults.clear()
    folder = tmp_path / "out" / "es-en"
    assert code == 2 and f"hf upload org/broken-es-en {folder} . --private" in errors, errors
    assert trained_models.read_template(folder).direction.name == "es-en"
    hub_run.hub.repositories.pop(("models", "org/broken-es-en"), None)
