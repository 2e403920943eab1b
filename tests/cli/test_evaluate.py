"""`roundtrip evaluate`: scores against sacreBLEU, each option, and each likely mistake."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import unicodedata
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF, TER

from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.export import export
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trained_models import ExportedDirection, write_template
from roundtrip.cli import evaluate, evaluation_inputs
from roundtrip.cli.app import exit_with
from roundtrip.cli.evaluation_inputs import exported_direction
from roundtrip.engine import long_inputs
from roundtrip.evaluation import comet_worker, metrics
from roundtrip.evaluation.comparison import EvaluationSet, EvaluationSettings, changed_lines
from roundtrip.runtime.errors import RunError
from roundtrip.tokens.prompt_segments import Segments

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


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit_info:
            exit_with(evaluate.main)
    captured = capsys.readouterr()
    return int(exit_info.value.code or 0), captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], files: Path, *more: str | Path) -> dict[str, Any]:
    code, _, error = command(capsys, "--test", files / "test.tsv", "--json", files / "out.json", *more)
    assert code == 0, error
    result: dict[str, Any] = json.loads((files / "out.json").read_text(encoding="utf-8"))
    return result


def test_scores_equal_sacrebleu(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = document(capsys, files, "--system", files / "poor", "--ter")
    for name, metric in (("BLEU", BLEU()), ("chrF++", CHRF(word_order=2)), ("TER", TER(case_sensitive=True))):
        assert result["scores"]["system"][name] == metric.corpus_score(POOR, [REFERENCES]).score
        assert result["scores"]["copy"][name] == metric.corpus_score(SOURCES, [REFERENCES]).score
        assert result["signatures"][name] == str(metric.get_signature())
    assert "comparison" not in result and "changed" not in result and result["lines"] == 60


def test_lowercase_changes_scores_and_signature(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (("--to", "zho_Hans"), "zh"),
        (("--to", "zh", "--bleu-tokenize", "intl"), "intl"),
    ],
)
def test_bleu_tokenizer_follows_target_language(
    arguments: tuple[str, ...], tokenizer: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = document(capsys, files, "--system", files / "good", *arguments)
    assert f"tok:{tokenizer}" in result["signatures"]["BLEU"]


def test_comparison_and_changed_lines_of_two_systems(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = files / "mixed"
    mixed.write_text("".join(f"{a if n % 4 else b}\n" for n, (a, b) in enumerate(zip(GOOD, POOR, strict=True))))
    poor = files / "other"
    poor.write_text("".join(f"{a if n == 8 else b}\n" for n, (a, b) in enumerate(zip(GOOD, POOR, strict=True))))
    arguments = ("--source", files / "src", "--reference", files / "ref", "--system", mixed, "--baseline", poor)
    code, shown, _ = command(
        capsys, *arguments, "--samples", "200", "--seed", "7", "--changed", "3", "--json", files / "o"
    )
    assert code == 0
    result = json.loads((files / "o").read_text())
    expected = metrics.paired_bootstrap(
        poor.read_text().splitlines(), mixed.read_text().splitlines(), REFERENCES, samples=200, seed=7
    )
    assert result["comparison"] == [entry.to_dict() for entry in expected]
    assert result["settings"]["samples"] == 200 and result["settings"]["seed"] == 7
    assert len(result["changed"]["gained"]) == 3 and [entry["line"] for entry in result["changed"]["lost"]] == [9]
    lost = result["changed"]["lost"][0]
    assert (lost["source"], lost["baseline"], lost["system"]) == (SOURCES[8], GOOD[8], POOR[8])
    metric = CHRF(word_order=2)
    assert lost["scores"] == [metric.sentence_score(text, [REFERENCES[8]]).score for text in (GOOD[8], POOR[8])]
    assert "paired bootstrap, 200 samples" in shown and "significant" in shown
    assert f"lost {-lost['change']:.0f} chrF++, line 9: {SOURCES[8]}" in shown and GOOD[8] in shown


@given(
    texts=st.lists(
        st.tuples(*[st.text("ab ", max_size=6)] * 3, st.text("ab", min_size=1, max_size=6)), min_size=1, max_size=9
    ),
    num_changed=st.integers(0, 5),
)
def test_changed_lines_mirror_when_systems_swap(texts: list[tuple[str, str, str, str]], num_changed: int) -> None:
    sources, first, second, references = (list(side) for side in zip(*texts, strict=True))
    test, settings = EvaluationSet(sources, references), EvaluationSettings(num_changed=num_changed)
    forward = changed_lines(test, first, second, settings)
    swapped = changed_lines(test, second, first, settings)
    assert [line["line"] for line in forward["gained"]] == [line["line"] for line in swapped["lost"]]
    assert [line["change"] for line in forward["lost"]] == [-line["change"] for line in swapped["gained"]]
    assert all(len(lines) <= num_changed for lines in forward.values())


def test_slices_are_scored_and_small_ones_not_compared(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--system", files / "good", "--baseline", files / "poor", "--slices", files / "labels")
    result = document(capsys, files, *arguments, "--samples", "50")["slices"]
    assert {label: entry["lines"] for label, entry in result.items()} == {"news": 52, "web": 8}
    assert result["web"]["scores"]["system"]["BLEU"] == BLEU().corpus_score(GOOD[52:], [REFERENCES[52:]]).score
    assert "comparison" in result["news"] and "comparison" not in result["web"]
    _, shown, _ = command(capsys, "--test", files / "test.tsv", *arguments, "--samples", "50")
    assert "web, 8 lines" in shown and "too few lines for a test" in shown


def test_empty_lines_and_copies_are_counted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = files / "odd"
    odd.write_text("".join(f"{line}\n" for line in [SOURCES[0], SOURCES[1], "", "  ", *GOOD[4:]]), encoding="utf-8")
    result = document(capsys, files, "--system", odd)
    assert result["empty"] == {"system": 2} and result["copies"] == {"system": 2}


def test_copy_that_equals_the_reference_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.tsv").write_text("OK\tOK\nRoma\tRome\n")
    (tmp_path / "out").write_text("OK\nRoma\n")
    assert document(capsys, tmp_path, "--system", tmp_path / "out")["copies"] == {"system": 1}


def test_identical_slice_has_p_value_one(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = files / "half[b]"
    half.write_text("".join(f"{line}\n" for line in [*GOOD[:52], *POOR[52:]]), encoding="utf-8")
    arguments = ("--system", half, "--baseline", files / "good", "--slices", files / "labels", "--samples", "50")
    result = document(capsys, files, *arguments)["slices"]["news"]["comparison"]
    assert [entry["p_value"] for entry in result] == [1.0, 1.0]
    _, shown, _ = command(capsys, "--test", files / "test.tsv", *arguments)
    assert "half[b]" in shown, "a name is not markup"


def test_lowercase_ignores_lines_that_differ_in_case_only(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upper = files / "upper"
    upper.write_text("".join(f"{line.upper()}\n" for line in GOOD), encoding="utf-8")
    arguments = ("--system", upper, "--baseline", files / "good", "--samples", "20")
    assert document(capsys, files, *arguments)["changed"]["lost"]
    result = document(capsys, files, *arguments, "--lowercase")
    assert result["changed"] == {"gained": [], "lost": []}
    assert [entry["p_value"] for entry in result["comparison"]] == [1.0, 1.0], "and no difference is significant"


def test_document_holds_command_and_versions(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = document(capsys, files, "--system", files / "good", "--to", "en", "--ter")
    assert result["command"]["system"] == str(files / "good") and result["command"]["to"] == "en"
    assert {"roundtrip", "sacrebleu", "numpy"} <= set(result["versions"])


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_text_is_cleaned_as_by_runs(form: Any, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reference in another normal form, with a byte order mark or odd spaces scores as the same text does."""
    text = ["Ngọn đèn đỏ nhìn hai ổ bánh mì.", "Él quiere la flor pequeña aquí.", "전화기가 여기 있다."]
    other = [unicodedata.normalize(form, line).replace(" ", "\u2028", 1) for line in text]
    (files / "system").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    (files / "pairs").write_text("".join(f"x{i}\t{line}\r\n" for i, line in enumerate(other)), encoding="utf-8-sig")
    (files / "src").write_text("a\nb\nc\n")
    (files / "ref").write_text("".join(f"{line}\n" for line in other), encoding="utf-8")
    for test in (["--test", files / "pairs"], ["--source", files / "src", "--reference", files / "ref"]):
        code, shown, error = command(capsys, *test, "--system", files / "system", "--samples", "10")
        assert code == 0 and "100.0" in shown and "text: Unicode NFC" in shown, error


def test_gzipped_files_are_read(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(files / "good.gz", "wb") as file:
        file.write((files / "good").read_bytes())
    plain, packed = (document(capsys, files, "--system", files / name)["scores"] for name in ("good", "good.gz"))
    assert plain == packed


def test_control_characters_are_escaped_in_output(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = files / "bad"
    bad.write_text("".join(f"\x1b[2J{line}\n" for line in GOOD), encoding="utf-8")
    code, shown, _ = command(capsys, "--test", files / "test.tsv", "--system", bad, "--baseline", files / "poor")
    assert code == 0 and "\x1b" not in shown and "[2J" in shown


MISTAKES: list[tuple[list[str], str]] = [
    (["--test", "{}/test.tsv", "--system", "{}/none"], "none: cannot be read: No such file"),
    (["--test", "{}/test.tsv", "--system", "{}/short"], "59 lines, and the test set has 60"),
    (["--source", "{}/src", "--system", "{}/good"], "exactly one test set is needed"),
    (["--system", "{}/good"], "exactly one test set is needed"),
    (
        ["--test", "{}/test.tsv", "--source", "{}/src", "--reference", "{}/ref", "--system", "{}/good"],
        "exactly one test set",
    ),
    (["--source", "{}/short", "--reference", "{}/ref", "--system", "{}/good"], "60 lines, and {}/short has 59"),
    (["--test", "{}/src", "--system", "{}/good"], "{}/src:1: 1 column where source and reference are expected"),
    (["--test", "{}/nothing", "--system", "{}/good"], "the file is empty"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--baseline", "{}/good"], "are identical in every line"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--slices", "{}/short"], "59 lines, and the test set has 60"),
    (["--test", "{}/test.tsv", "--system", "{}"], "is a run, which translates into either of two languages"),
    (["--test", "{}/test.tsv", "--system", "{}", "--to", "en"], "not a run"),
    (
        ["--test", "{}/test.tsv", "--system", "{}/good", "--samples", "3"],
        "--samples: 3 is too small: at least 10",
    ),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--json", "{}"], "is a folder"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--json", "{}/src/out"], "cannot be written"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--to", "Spanish!"], "not a language code"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--stage", "parallel"], "--stage: applies to runs only"),
    (
        ["--test", "{}/test.tsv", "--system", "{}/good", "--device", "cpu"],
        "--device: applies to systems that translate",
    ),
    (
        ["--test", "{}/test.tsv", "--system", "{}/good", "--baseline-stage", "best"],
        "--baseline-stage: needs --baseline",
    ),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--changed", "-1"], "--changed: -1 is too small: at least 0"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--bleu-tokenize", "ko-mecab"], "'ko-mecab' cannot be used"),
    (
        ["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/model"],
        "must be given together",
    ),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/no.ckpt", "--comet-python", "x"], "no such file"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/good", "--comet-python", "x"], "there is no"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--comet", "{}/m/c/k", "--comet-python", "no-python"], "No such"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--json", "{}/good"], "this input file would be overwritten"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--slices", "{}/gaps"], "{}/gaps:2: a line without a label"),
    (["--test", "{}/test.tsv", "--system", "{}/good", "--bleu-tokenize", "ko-mecab"], "error: --bleu-tokenize"),
]


@pytest.mark.parametrize(("arguments", "problem"), MISTAKES)
def test_mistakes_exit_with_code_2_and_message(
    arguments: list[str], problem: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "short").write_text("".join(f"{line}\n" for line in GOOD[1:]), encoding="utf-8")
    (files / "nothing").write_text("")
    (files / "gaps").write_text("a\n\n" + "a\n" * 58)
    (files / "m" / "c").mkdir(parents=True)
    for name in ("m/c/k", "m/hparams.yaml"):
        (files / name).write_text("")
    before = (files / "good").read_text()
    code, shown, error = command(capsys, *[part.replace("{}", str(files)) for part in arguments])
    assert code == 2 and not shown and (files / "good").read_text() == before
    assert problem.replace("{}", str(files)) in error and "Traceback" not in error


def test_run_as_system_reproduces_its_own_scores(
    finished: tuple[Path, Path, str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, run, _ = finished
    metrics = json.loads((run / "metrics.json").read_text())
    kept = (run / "translations" / "test.round-1.en-es.txt").read_text()
    (tmp_path / "kept").write_text(kept)
    arguments = ["--test", run / "data" / "test.tsv", "--to", "es", "--samples", "20", "--json", tmp_path / "o"]
    code, shown, error = command(capsys, *arguments, "--system", run, "--stage", "round-1", "--baseline", run,
                         "--baseline-stage", "parallel", "--device", "cpu")  # fmt: skip
    assert code == 0, error
    result = json.loads((tmp_path / "o").read_text())["scores"]
    for name, stage in (("system", "round-1"), ("baseline", "parallel")):
        assert result[name]["chrF++"] == pytest.approx(metrics["test"][stage]["en-es"]["chrf"])
        assert result[name]["BLEU"] == pytest.approx(metrics["test"][stage]["en-es"]["bleu"])
    assert f"baseline: {run}, stage parallel" in shown and f"system: {run}, stage round-1" in shown
    code, _, error = command(capsys, *arguments, "--system", run, "--stage", "round-1", "--baseline", tmp_path / "kept")
    assert code == 2 and "identical in every line" in error
    # An empty source stays empty, and a source that is too long is split into sentences.
    (tmp_path / "odd.tsv").write_text("\tnada\n" + "I see the red door here. " * 20 + "\tVeo la puerta.\n")
    odd = ["--test", tmp_path / "odd.tsv", "--to", "es", "--system", run, "--json", tmp_path / "o", "--device", "cpu"]
    code, _, error = command(capsys, *odd)
    assert code == 0 and json.loads((tmp_path / "o").read_text())["empty"]["system"] == 1, error
    (tmp_path / "odd.tsv").write_text("word " * 400 + "\tVeo la puerta.\n")
    code, _, error = command(capsys, *odd)
    assert code == 2 and "1 source too long: line 1: a sentence of 400 words" in error
    code, _, error = command(capsys, "--test", run / "data" / "test.tsv", "--to", "fr", "--system", run)
    assert code == 2 and "not into 'fr'" in error


def test_exported_direction_scores_equal_its_run(
    finished: tuple[Path, Path, str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunFolder(finished[1])
    for merged in (False, True):
        export(run.path, "en-es", tmp_path / str(merged), merged=merged)
    base = Path(str(run.recipe().model["en-es"].path))
    test = ["--test", run.data / "test.tsv", "--device", "cpu"]
    figures = []
    for folder, more in ((run.path, ["--to", "es"]), (tmp_path / "False", ["--base", base]), (tmp_path / "True", [])):
        code, _, error = command(capsys, *test, *more, "--system", folder, "--json", tmp_path / "o")
        assert code == 0, error
        figures.append(json.loads((tmp_path / "o").read_text())["scores"]["system"])
    assert figures[0] == figures[1] == figures[2]
    code, _, error = command(capsys, *test, "--to", "fr", "--system", tmp_path / "True")
    assert code == 2 and "translates en-es, not into 'fr'" in error
    code, _, error = command(capsys, *test, "--base", base, "--system", tmp_path / "True")
    assert code == 2 and "--base: applies to exported adapters only" in error
    code, _, error = command(capsys, *test, "--system", tmp_path / "False")
    assert code == 2 and f"its base model ./{base.name} cannot be loaded" in error and "--base" in error
    (tmp_path / "False" / base.name).symlink_to(base)
    code, _, error = command(capsys, *test, "--system", tmp_path / "False")
    assert code == 0, error
    (tmp_path / "False" / "adapter_config.json").write_text("{")
    code, _, error = command(capsys, *test, "--system", tmp_path / "False")
    assert code == 2 and "adapter_config.json has been changed" in error and "export it again" in error
    (tmp_path / "True" / "template.json").write_text("{")
    code, _, error = command(capsys, *test, "--system", tmp_path / "True")
    assert code == 2 and "template.json is damaged" in error


SEGMENTS = Segments("English: ", "\nSpanish: ", (), 2, (2,), (5,))


@pytest.mark.parametrize(
    ("target", "to", "expected"),
    [
        *[("es", None, "es"), ("es", "es", "es"), ("pt-BR", None, "pt-BR"), ("es", "e", "not into 'e'")],
        *[("zh-Hans", "zho_Hans", "zh-Hans"), ("zh-Hant", "zh_TW", "zh-Hant"), ("zh-Hans", "zh-Hant", "not into")],
    ],
)
def test_exported_direction_is_into_the_language_asked_for(
    tmp_path: Path, target: str, to: str | None, expected: str
) -> None:
    write_template(tmp_path, ExportedDirection("en", target, SEGMENTS, 1.0, None, {}))
    try:
        assert exported_direction(tmp_path, to).target == expected
    except RunError as error:
        assert expected in str(error)


def test_truncated_lines_are_counted(
    finished: tuple[Path, Path, str],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def translate(
        translator: Any, texts: list[str], settings: Any, refused: list[str], truncated: list[str]
    ) -> list[str]:
        truncated.append("line 2: the translation was cut at its length limit")
        return ["una casa"] * len(texts)

    monkeypatch.setattr(trained_models, "load", lambda *arguments: None)
    monkeypatch.setattr(long_inputs, "translate_any_length", translate)
    arguments = ["--test", finished[1] / "data" / "test.tsv", "--to", "es", "--system", finished[1]]
    arguments += ["--bleu-tokenize", "intl"]
    code, shown, error = command(capsys, *arguments, "--json", tmp_path / "o")
    assert code == 0, error
    result = json.loads((tmp_path / "o").read_text())
    assert result["truncated"] == {"system": 1} and "tok:intl" in result["signatures"]["BLEU"]
    assert "system: 1 translation cut at the length limit" in shown


def test_evaluate_as_subprocess(files: Path) -> None:
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
class Prediction:
    def __init__(self, scores):
        self.scores, self.system_score = scores, sum(scores) / len(scores)


class Model:
    def predict(self, rows, batch_size, gpus, progress_bar):
        import os
        assert os.environ["HF_HUB_OFFLINE"] == "1" and gpus in (0, 1) and not progress_bar
        scores = [len(set(row["mt"].split()) & set(row["ref"].split())) / 10 for row in rows]
        return Prediction(scores SHORT)


def load_from_checkpoint(path, local_files_only):
    assert local_files_only
    with open(LOG, "a") as file:
        file.write(path + "\\n")
    FAIL
    return Model()
"""


@pytest.fixture
def environment(files: Path) -> Any:
    """A virtual environment with a stand-in for COMET, and a checkpoint."""

    def make(fail: str = "", short: str = "", top: str = "", folder: str = "wmt") -> list[str | Path]:
        venv.create(files / "env", symlinks=True)
        (site,) = (files / "env" / "lib").glob("python*/site-packages")
        fake = FAKE.replace("FAIL", fail).replace("SHORT", short).replace("LOG", repr(str(files / "loads")))
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
    result = everything["comet"]
    expected = {"copy": overlaps(SOURCES), "system": overlaps(GOOD), "baseline": overlaps(POOR)}
    assert result["scores"] == expected
    assert result["means"]["system"] == pytest.approx(np.mean(expected["system"]))
    assert result["signature"] == "model:wmt|version:2.2.7"
    assert result["p_value"] == metrics.paired_bootstrap_means(expected["baseline"], expected["system"], samples=100)
    assert (files / "loads").read_text().count("\n") == 1, "one load for all systems"
    news, web = everything["slices"]["news"]["comet"], everything["slices"]["web"]["comet"]
    assert web["means"]["copy"] == pytest.approx(np.mean(expected["copy"][52:])) and "p_value" not in web
    both = expected["baseline"][:52], expected["system"][:52]
    assert news["p_value"] == metrics.paired_bootstrap_means(*both, samples=100)
    _, shown, _ = command(capsys, "--test", files / "test.tsv", *arguments)
    assert shown.count("  COMET: ") == 3 and "model:wmt" in shown


def test_comet_signature_names_hub_id_of_cached_model(
    files: Path, environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = environment(folder="models--Unbabel--wmt22-comet-da/snapshots/abc")
    result = document(capsys, files, "--system", files / "good", *arguments)
    assert result["comet"]["signature"].startswith("model:Unbabel/wmt22-comet-da|")


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
def test_comet_failures_are_reported(
    settings: dict[str, str], problem: str, files: Path, environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--test", files / "test.tsv", "--system", files / "good", *environment(**settings)]
    code, _, error = command(capsys, *arguments)
    assert code == 2 and problem in error


def test_missing_comet_is_reported_before_translating(
    files: Path, environment: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_inputs, "translations", lambda *arguments: pytest.fail("translated"))
    given = environment(top="import pkg_resources")
    code, _, error = command(capsys, "--test", files / "test.tsv", "--system", files / "good", *given)
    assert code == 2 and "No module named 'pkg_resources'" in error and "'setuptools<81'" in error
    code, _, error = command(
        capsys, "--test", files / "test.tsv", "--system", files / "good", *given[:3], sys.executable
    )
    assert code == 2 and "No module named 'comet'" in error and "pip install unbabel-comet" in error
    (files / "wmt" / "hparams.yaml").unlink()
    code, _, error = command(capsys, "--test", files / "test.tsv", "--system", files / "good", *given)
    assert code == 2 and "wmt/hparams.yaml" in error


def test_comet_worker_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process too, so that coverage sees it."""
    (tmp_path / "comet.py").write_text(FAKE.replace("FAIL", "").replace("SHORT", "").replace("LOG", "'/dev/null'"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = {"src": ["a"], "ref": ["b c"], "systems": {"system": ["c d"]}}
    (tmp_path / "in").write_text(json.dumps(rows))
    monkeypatch.setattr(sys, "argv", ["comet_worker", str(tmp_path / "in"), str(tmp_path / "out"), "model.ckpt"])
    comet_worker.main()
    result = json.loads((tmp_path / "out").read_text())
    assert result == {"version": "unknown", "scores": {"system": [0.1]}}
    monkeypatch.setattr(sys, "argv", ["comet_worker"])
    comet_worker.main()


def test_paired_bootstrap_means_significance() -> None:
    random = np.random.default_rng(1)
    one = random.normal(0.5, 0.1, 300)
    assert metrics.paired_bootstrap_means(one.tolist(), (one + random.normal(0.02, 0.05, 300)).tolist()) < 0.01
    assert metrics.paired_bootstrap_means(one.tolist(), (one + random.normal(0.0, 0.05, 300) - 0.0).tolist()) > 0.05
    assert metrics.paired_bootstrap_means([0.1, 0.2], [0.2, 0.1], seed=1) == metrics.paired_bootstrap_means(
        [0.1, 0.2], [0.2, 0.1], seed=1
    )
