"""Scoring any systems on any test file: figures against sacreBLEU, each option, and each likely mistake."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF, TER

from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.cli import evaluate, export
from roundtrip.cli.evaluate import changed
from roundtrip.cli.systems import EvaluationSet, exported_direction
from roundtrip.engine import long_inputs
from roundtrip.evaluation import comet_worker, metrics
from roundtrip.runtime.errors import RunError

SOURCES = [f"Las {n} casas pequeñas están en una fila cerca del río." for n in range(60)]
REFERENCES = [f"The {n} small houses stand in a row near the River." for n in range(60)]
GOOD = [text.replace("near", "by") for text in REFERENCES]
POOR = [text.replace("small houses stand", "house stands small") for text in REFERENCES]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A test set, two systems and labels."""
    labels = ["news"] * 52 + ["web"] * 8
    for name, lines in {"src": SOURCES, "ref": REFERENCES, "good": GOOD, "poor": POOR, "labels": labels}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    pairs = "".join(f"{source}\t{reference}\n" for source, reference in zip(SOURCES, REFERENCES, strict=True))
    (tmp_path / "test.tsv").write_text(pairs, encoding="utf-8")
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Go through the door in this process; return exit code and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as left:
            evaluate.main()
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def document(capsys: pytest.CaptureFixture[str], files: Path, *more: str | Path) -> dict[str, Any]:
    code, _, error = ask(capsys, "--test", files / "test.tsv", "--json", files / "out.json", *more)
    assert code == 0, error
    found: dict[str, Any] = json.loads((files / "out.json").read_text(encoding="utf-8"))
    return found


def test_one_system_has_the_figures_of_sacrebleu(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, files, "--system", files / "poor", "--ter")
    for name, metric in (("BLEU", BLEU()), ("chrF++", CHRF(word_order=2)), ("TER", TER(case_sensitive=True))):
        assert found["scores"]["system"][name] == metric.corpus_score(POOR, [REFERENCES]).score
        assert found["scores"]["copy"][name] == metric.corpus_score(SOURCES, [REFERENCES]).score
        assert found["signatures"][name] == str(metric.get_signature())
    assert "comparison" not in found and "changed" not in found and found["lines"] == 60


def test_lowercase_is_in_figures_and_signature(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lowered = files / "lowered"
    lowered.write_text("".join(f"{line.lower()}\n" for line in REFERENCES), encoding="utf-8")
    cased = document(capsys, files, "--system", lowered)
    same = document(capsys, files, "--system", lowered, "--lowercase", "--ter")
    assert cased["scores"]["system"]["BLEU"] < 100 and same["scores"]["system"]["BLEU"] == pytest.approx(100.0)
    assert same["scores"]["system"]["chrF++"] == pytest.approx(100.0) and same["scores"]["system"]["TER"] == 0.0
    assert "case:lc" in same["signatures"]["BLEU"] and "case:lc" in same["signatures"]["chrF++"]


@pytest.mark.parametrize(
    ("arguments", "tokenizer"),
    [
        ((), "13a"),
        (("--to", "zh"), "zh"),
        (("--to", "ja"), "char"),
        (("--to", "zh", "--bleu-tokenize", "intl"), "intl"),
    ],
)
def test_the_tokenizer_fits_the_language(
    arguments: tuple[str, ...], tokenizer: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, files, "--system", files / "good", *arguments)
    assert f"tok:{tokenizer}" in found["signatures"]["BLEU"]


def test_two_systems_are_compared_and_the_lines_that_changed_are_shown(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = files / "mixed"
    mixed.write_text("".join(f"{a if n % 4 else b}\n" for n, (a, b) in enumerate(zip(GOOD, POOR, strict=True))))
    poor = files / "other"
    poor.write_text("".join(f"{a if n == 8 else b}\n" for n, (a, b) in enumerate(zip(GOOD, POOR, strict=True))))
    arguments = ("--source", files / "src", "--reference", files / "ref", "--system", mixed, "--baseline", poor)
    code, shown, _ = ask(capsys, *arguments, "--samples", "200", "--seed", "7", "--changed", "3", "--json", files / "o")
    assert code == 0
    found = json.loads((files / "o").read_text())
    expected = metrics.paired_bootstrap(
        poor.read_text().splitlines(), mixed.read_text().splitlines(), REFERENCES, samples=200, seed=7
    )
    assert found["comparison"] == [one.to_dict() for one in expected]
    assert found["settings"]["samples"] == 200 and found["settings"]["seed"] == 7
    assert len(found["changed"]["gained"]) == 3 and [one["line"] for one in found["changed"]["lost"]] == [9]
    lost = found["changed"]["lost"][0]
    assert (lost["source"], lost["baseline"], lost["system"]) == (SOURCES[8], GOOD[8], POOR[8])
    metric = CHRF(word_order=2)
    assert lost["scores"] == [metric.sentence_score(text, [REFERENCES[8]]).score for text in (GOOD[8], POOR[8])]
    assert "paired bootstrap, 200 samples" in shown and "significant" in shown
    assert f"lost {-lost['change']:.0f} chrF++, line 9: {SOURCES[8]}" in shown and GOOD[8] in shown


@given(
    texts=st.lists(
        st.tuples(*[st.text("ab ", max_size=6)] * 3, st.text("ab", min_size=1, max_size=6)), min_size=1, max_size=9
    ),
    number=st.integers(0, 5),
)
def test_swapped_systems_mirror_gains_and_losses(texts: list[tuple[str, str, str, str]], number: int) -> None:
    sources, one, other, references = (list(side) for side in zip(*texts, strict=True))
    there, back = (changed(EvaluationSet(sources, references), *pair, number) for pair in ((one, other), (other, one)))
    assert [line["line"] for line in there["gained"]] == [line["line"] for line in back["lost"]]
    assert [line["change"] for line in there["lost"]] == [-line["change"] for line in back["gained"]]
    assert all(len(lines) <= number for lines in there.values())


def test_slices_are_scored_apart_and_small_ones_are_not_tested(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--system", files / "good", "--baseline", files / "poor", "--slices", files / "labels")
    found = document(capsys, files, *arguments, "--samples", "50")["slices"]
    assert {label: one["lines"] for label, one in found.items()} == {"news": 52, "web": 8}
    assert found["web"]["scores"]["system"]["BLEU"] == BLEU().corpus_score(GOOD[52:], [REFERENCES[52:]]).score
    assert "comparison" in found["news"] and "comparison" not in found["web"]
    _, shown, _ = ask(capsys, "--test", files / "test.tsv", *arguments, "--samples", "50")
    assert "web, 8 lines" in shown and "too few lines for a test" in shown


def test_empty_lines_and_copies_are_counted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = files / "odd"
    odd.write_text("".join(f"{line}\n" for line in [SOURCES[0], SOURCES[1], "", "  ", *GOOD[4:]]), encoding="utf-8")
    found = document(capsys, files, "--system", odd)
    assert found["empty"] == {"system": 2} and found["copies"] == {"system": 2}


def test_a_copy_that_is_right_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.tsv").write_text("OK\tOK\nRoma\tRome\n")
    (tmp_path / "out").write_text("OK\nRoma\n")
    assert document(capsys, tmp_path, "--system", tmp_path / "out")["copies"] == {"system": 1}


def test_a_slice_on_which_both_are_the_same_is_no_difference(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = files / "half[b]"
    half.write_text("".join(f"{line}\n" for line in [*GOOD[:52], *POOR[52:]]), encoding="utf-8")
    arguments = ("--system", half, "--baseline", files / "good", "--slices", files / "labels", "--samples", "50")
    found = document(capsys, files, *arguments)["slices"]["news"]["comparison"]
    assert [one["p_value"] for one in found] == [1.0, 1.0]
    _, shown, _ = ask(capsys, "--test", files / "test.tsv", *arguments)
    assert "half[b]" in shown, "a name is no markup"


def test_lines_that_differ_in_case_alone_have_not_changed_in_lowercase(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upper = files / "upper"
    upper.write_text("".join(f"{line.upper()}\n" for line in GOOD), encoding="utf-8")
    arguments = ("--system", upper, "--baseline", files / "good", "--samples", "20")
    assert document(capsys, files, *arguments)["changed"]["lost"]
    found = document(capsys, files, *arguments, "--lowercase")
    assert found["changed"] == {"gained": [], "lost": []}
    assert [one["p_value"] for one in found["comparison"]] == [1.0, 1.0], "and no difference is significant"


def test_the_document_says_how_it_was_made(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, files, "--system", files / "good", "--to", "en", "--ter")
    assert found["command"]["system"] == str(files / "good") and found["command"]["to"] == "en"
    assert {"roundtrip", "sacrebleu", "numpy"} <= set(found["versions"])


def test_gzipped_files_are_read(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(files / "good.gz", "wb") as file:
        file.write((files / "good").read_bytes())
    plain, packed = (document(capsys, files, "--system", files / name)["scores"] for name in ("good", "good.gz"))
    assert plain == packed


def test_what_a_terminal_would_obey_is_written_out(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = files / "bad"
    bad.write_text("".join(f"\x1b[2J{line}\n" for line in GOOD), encoding="utf-8")
    code, shown, _ = ask(capsys, "--test", files / "test.tsv", "--system", bad, "--baseline", files / "poor")
    assert code == 0 and "\x1b" not in shown and "[2J" in shown


MISTAKES: list[tuple[list[str], str]] = [
    (["--test", "{}/test.tsv", "--system", "{}/none"], "none: cannot be read: No such file"),
    (["--test", "{}/test.tsv", "--system", "{}/short"], "59 lines, and the test set has 60"),
    (["--source", "{}/src", "--system", "{}/good"], "a test set is wanted, once"),
    (["--system", "{}/good"], "a test set is wanted, once"),
    (["--test", "{}/test.tsv", "--source", "{}/src", "--reference", "{}/ref", "--system", "{}/good"], "wanted, once"),
    (["--source", "{}/short", "--reference", "{}/ref", "--system", "{}/good"], "60 lines, and {}/short has 59"),
    (["--test", "{}/src", "--system", "{}/good"], "{}/src:1: 1 columns where source and reference are wanted"),
    (["--test", "{}/nothing", "--system", "{}/good"], "no line in it"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--baseline", "{}/good"], "are the same, line by line"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--slices", "{}/short"], "59 lines, and the test set has 60"),
    (["--test", "{}/test.tsv", "--system", "{}"], "a run translates, into which language?"),
    (["--test", "{}/test.tsv", "--system", "{}", "--to", "en"], "not a run"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--samples", "3"], "--samples: 3: at least 10 is wanted"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--json", "{}"], "is a folder"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--changed", "-1"], "--changed: -1: at least 0"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--bleu-tokenize", "ko-mecab"], "'ko-mecab' cannot be used"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/model"], "give both or neither"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/no.ckpt", "--comet-python", "x"], "no such file"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/good", "--comet-python", "x"], "there is no"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/m/c/k", "--comet-python", "no-python"], "No such"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--json", "{}/good"], "would be written over"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--slices", "{}/gaps"], "{}/gaps:2: a line without a label"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--bleu-tokenize", "ko-mecab"], "error: --bleu-tokenize"),
]


@pytest.mark.parametrize(("arguments", "problem"), MISTAKES)
def test_each_mistake_is_named_with_its_cure(
    arguments: list[str], problem: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "short").write_text("".join(f"{line}\n" for line in GOOD[1:]), encoding="utf-8")
    (files / "nothing").write_text("")
    (files / "gaps").write_text("a\n\n" + "a\n" * 58)
    (files / "m" / "c").mkdir(parents=True)
    for name in ("m/c/k", "m/hparams.yaml"):
        (files / name).write_text("")
    before = (files / "good").read_text()
    code, shown, error = ask(capsys, *[part.replace("{}", str(files)) for part in arguments])
    assert code == 2 and not shown and (files / "good").read_text() == before
    assert problem.replace("{}", str(files)) in error and "Traceback" not in error


def test_a_run_is_asked_and_is_as_good_as_its_own_table_says(
    finished: tuple[Path, Path, str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, run, _ = finished
    metrics = json.loads((run / "metrics.json").read_text())
    kept = (run / "translations" / "test.round-1.en-es.txt").read_text()
    (tmp_path / "kept").write_text(kept)
    arguments = ["--test", run / "data" / "test.tsv", "--to", "es", "--samples", "20", "--json", tmp_path / "o"]
    code, _, error = ask(capsys, *arguments, "--system", run, "--stage", "round-1", "--baseline", run,
                         "--baseline-stage", "parallel", "--device", "cpu")  # fmt: skip
    assert code == 0, error
    found = json.loads((tmp_path / "o").read_text())["scores"]
    for name, stage in (("system", "round-1"), ("baseline", "parallel")):
        assert found[name]["chrF++"] == pytest.approx(metrics["test"][stage]["en-es"]["chrf"])
        assert found[name]["BLEU"] == pytest.approx(metrics["test"][stage]["en-es"]["bleu"])
    code, _, error = ask(capsys, *arguments, "--system", run, "--stage", "round-1", "--baseline", tmp_path / "kept")
    assert code == 2 and "the same, line by line" in error
    # An empty source stays empty, and one that is too long goes by sentences.
    (tmp_path / "odd.tsv").write_text("\tnada\n" + "I see the red door here. " * 20 + "\tVeo la puerta.\n")
    odd = ["--test", tmp_path / "odd.tsv", "--to", "es", "--system", run, "--json", tmp_path / "o", "--device", "cpu"]
    code, _, error = ask(capsys, *odd)
    assert code == 0 and json.loads((tmp_path / "o").read_text())["empty"]["system"] == 1, error
    (tmp_path / "odd.tsv").write_text("word " * 400 + "\tVeo la puerta.\n")
    code, _, error = ask(capsys, *odd)
    assert code == 2 and "1 sources are too long: line 1: a sentence of 400 words" in error
    code, _, error = ask(capsys, "--test", run / "data" / "test.tsv", "--to", "fr", "--system", run)
    assert code == 2 and "not into 'fr'" in error


def test_an_exported_direction_is_asked_and_says_what_its_run_says(
    finished: tuple[Path, Path, str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunFolder(finished[1])
    for merged in (False, True):
        export.export(run, trained_models.direction_into(run, "es"), tmp_path / str(merged), "best", merged=merged)
    test = ["--test", run.data / "test.tsv", "--device", "cpu"]
    figures = []
    for place in (run.path, tmp_path / "False", tmp_path / "True"):
        more = ["--to", "es"] if place == run.path else []
        code, _, error = ask(capsys, *test, *more, "--system", place, "--json", tmp_path / "o")
        assert code == 0, error
        figures.append(json.loads((tmp_path / "o").read_text())["scores"]["system"])
    assert figures[0] == figures[1] == figures[2]
    code, _, error = ask(capsys, *test, "--to", "fr", "--system", tmp_path / "True")
    assert code == 2 and "translates en-es, not into 'fr'" in error
    config = json.loads((tmp_path / "False" / "adapter_config.json").read_text())
    for change, problem in (({"base_model_name_or_path": "/no/where"}, "--merged"), ({"r": None}, "export it again")):
        (tmp_path / "False" / "adapter_config.json").write_text(json.dumps(config | change))
        code, _, error = ask(capsys, *test, "--system", tmp_path / "False")
        assert code == 2 and problem in error and "Traceback" not in error
    (tmp_path / "False" / "adapter_config.json").write_text("{")
    code, _, error = ask(capsys, *test, "--system", tmp_path / "False")
    assert code == 2 and "export it again" in error
    (tmp_path / "True" / "template.json").write_text("{")
    code, _, error = ask(capsys, *test, "--system", tmp_path / "True")
    assert code == 2 and "template.json names no direction" in error


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [
        ("en-es", None, "es"),
        ("en-es", "es", "es"),
        ("en-pt-BR", "pt-BR", "pt-BR"),
        ("en-pt-BR", None, "can be read in two ways"),
        ("en-es", "e", "not into 'e'"),
    ],
)
def test_the_direction_of_an_exported_folder(tmp_path: Path, name: str, to: str | None, expected: str) -> None:
    (tmp_path / "template.json").write_text(json.dumps({"direction": name}))
    try:
        assert exported_direction(tmp_path, to).target == expected
    except RunError as error:
        assert expected in str(error)


def test_a_run_brings_its_tokenizer_and_what_was_cut_is_said(
    finished: tuple[Path, Path, str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts = json.loads((finished[1] / "run.json").read_text())
    facts["recipe"]["score"]["bleu_tokenize"] = {"es": "intl"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))

    def written(one: Any, texts: list[str], settings: Any, refused: list[str], cut: list[str]) -> list[str]:
        cut.append("line 2: the translation was cut at its length limit")
        return ["una casa"] * len(texts)

    monkeypatch.setattr(trained_models, "load", lambda *arguments: None)
    monkeypatch.setattr(long_inputs, "translate_any_length", written)
    arguments = ["--test", finished[1] / "data" / "test.tsv", "--to", "es", "--system", tmp_path / "run"]
    code, shown, error = ask(capsys, *arguments, "--json", tmp_path / "o")
    assert code == 0, error
    found = json.loads((tmp_path / "o").read_text())
    assert found["cut"] == {"system": 1} and "tok:intl" in found["signatures"]["BLEU"]
    assert "system: 1 translations were cut at their length limit" in shown


def test_through_the_real_door(files: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "roundtrip",
        "evaluate",
        "--test",
        "test.tsv",
        "--system",
        "good",
        "--baseline",
        "poor",
    ]
    done = subprocess.run([*command, "--samples", "20"], cwd=files, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "copying the source" in done.stdout and "system against baseline" in done.stdout


# ----------------------------------------------------------------------------------------------------------- COMET

FAKE = """
class Found:
    def __init__(self, scores):
        self.scores, self.system_score = scores, sum(scores) / len(scores)


class Model:
    def predict(self, rows, batch_size, gpus, progress_bar):
        import os
        assert os.environ["HF_HUB_OFFLINE"] == "1" and gpus in (0, 1) and not progress_bar
        scores = [len(set(row["mt"].split()) & set(row["ref"].split())) / 10 for row in rows]
        return Found(scores SHORT)


def load_from_checkpoint(path, local_files_only):
    assert local_files_only
    with open(PLACE, "a") as file:
        file.write(path + "\\n")
    FAIL
    return Model()
"""


@pytest.fixture
def environment(files: Path) -> Any:
    """An environment of its own with something that behaves as COMET does, and a checkpoint."""

    def make(fail: str = "", short: str = "", top: str = "", folder: str = "wmt") -> list[str | Path]:
        venv.create(files / "env", symlinks=True)
        (site,) = (files / "env" / "lib").glob("python*/site-packages")
        fake = FAKE.replace("FAIL", fail).replace("SHORT", short).replace("PLACE", repr(str(files / "loads")))
        (site / "comet.py").write_text(f"{top}\n{fake}")
        (site / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
        info = site / "unbabel_comet-2.2.7.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unbabel-comet\nVersion: 2.2.7\n")
        model = files / folder / "checkpoints" / "model.ckpt"
        model.parent.mkdir(parents=True)
        model.write_text("weights")
        (files / folder / "hparams.yaml").write_text("")
        return ["--comet", model, "--comet-python", files / "env" / "bin" / "python"]

    return make


def overlaps(texts: list[str]) -> list[float]:
    return [len(set(a.split()) & set(b.split())) / 10 for a, b in zip(texts, REFERENCES, strict=True)]


def test_comet_runs_in_its_own_environment(files: Path, environment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--system", files / "good", "--baseline", files / "poor", "--samples", "100", *environment()]
    arguments += ["--slices", files / "labels", "--device", "cpu"]
    everything = document(capsys, files, *arguments)
    found = everything["comet"]
    expected = {"copy": overlaps(SOURCES), "system": overlaps(GOOD), "baseline": overlaps(POOR)}
    assert found["scores"] == expected
    assert found["means"]["system"] == pytest.approx(np.mean(expected["system"]))
    assert found["signature"] == "model:wmt|version:2.2.7"
    assert found["p_value"] == metrics.paired_bootstrap_means(expected["baseline"], expected["system"], samples=100)
    assert (files / "loads").read_text().count("\n") == 1, "one load for all systems"
    news, web = everything["slices"]["news"]["comet"], everything["slices"]["web"]["comet"]
    assert web["means"]["copy"] == pytest.approx(np.mean(expected["copy"][52:])) and "p_value" not in web
    both = expected["baseline"][:52], expected["system"][:52]
    assert news["p_value"] == metrics.paired_bootstrap_means(*both, samples=100)
    _, shown, _ = ask(capsys, "--test", files / "test.tsv", *arguments)
    assert shown.count("  COMET: ") == 3 and "model:wmt" in shown


def test_a_model_in_the_cache_of_the_hub_has_its_name(
    files: Path, environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = environment(folder="models--Unbabel--wmt22-comet-da/snapshots/abc")
    found = document(capsys, files, "--system", files / "good", *arguments)
    assert found["comet"]["signature"].startswith("model:Unbabel/wmt22-comet-da|")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"fail": "raise ModuleNotFoundError(\"No module named 'transformers'\")"}, "unbabel-comet"),
        ({"fail": "raise RuntimeError('the weights are broken')"}, "RuntimeError: the weights are broken"),
        ({"fail": "raise RuntimeError('broken')"}, "the encoder that hparams.yaml names"),
        ({"short": "[:-1]"}, "59 scores for 60 lines of copy"),
        ({"short": "[:-1] + [float('nan')]"}, "ValueError: Out of range float values"),
    ],
)
def test_what_comet_does_wrong_is_told(
    settings: dict[str, str], problem: str, files: Path, environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--test", files / "test.tsv", "--system", files / "good", *environment(**settings)]
    code, _, error = ask(capsys, *arguments)
    assert code == 2 and problem in error


def test_an_environment_without_comet_is_known_before_anything_is_translated(
    files: Path, environment: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "translations", lambda *arguments: pytest.fail("translated"))
    given = environment(top="import pkg_resources")
    code, _, error = ask(capsys, "--test", files / "test.tsv", "--system", files / "good", *given)
    assert code == 2 and "No module named 'pkg_resources'" in error and "'setuptools<81'" in error
    code, _, error = ask(capsys, "--test", files / "test.tsv", "--system", files / "good", *given[:3], sys.executable)
    assert code == 2 and "No module named 'comet'" in error and "pip install unbabel-comet" in error
    (files / "wmt" / "hparams.yaml").unlink()
    code, _, error = ask(capsys, "--test", files / "test.tsv", "--system", files / "good", *given)
    assert code == 2 and "wmt/hparams.yaml" in error


def test_the_worker_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process too, where it can be seen which of its lines ran."""
    (tmp_path / "comet.py").write_text(FAKE.replace("FAIL", "").replace("SHORT", "").replace("PLACE", "'/dev/null'"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = {"src": ["a"], "ref": ["b c"], "systems": {"system": ["c d"]}}
    (tmp_path / "in").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "in"), str(tmp_path / "out"), "model.ckpt"])
    comet_worker.main()
    found = json.loads((tmp_path / "out").read_text())
    assert found == {"version": "unknown", "systems": {"system": {"scores": [0.1], "mean": 0.1}}}
    monkeypatch.setattr(sys, "argv", ["worker"])
    comet_worker.main()


def test_means_that_differ_are_significant_and_equal_ones_are_not() -> None:
    random = np.random.default_rng(1)
    one = random.normal(0.5, 0.1, 300)
    assert metrics.paired_bootstrap_means(one.tolist(), (one + random.normal(0.02, 0.05, 300)).tolist()) < 0.01
    assert metrics.paired_bootstrap_means(one.tolist(), (one + random.normal(0.0, 0.05, 300) - 0.0).tolist()) > 0.05
    assert metrics.paired_bootstrap_means([0.1, 0.2], [0.2, 0.1], seed=1) == metrics.paired_bootstrap_means(
        [0.1, 0.2], [0.2, 0.1], seed=1
    )
