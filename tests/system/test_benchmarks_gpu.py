"""The benchmark of what only a GPU can tell: every part runs on a CPU with a tiny shape, and a failure ends no part."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import common
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, measure, training
from benchmarks.gpu import show as show_part
from roundtrip.runtime.errors import ModelError, TrainingError


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Tensors are so small here that a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_part(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run one part as the command does, and return the cases of its result."""
    asked = ["--parts", name, "--shapes", "tiny", "--device", "cpu", "--out", str(folder), *arguments]
    assert command.main(asked) == 0
    path = folder / f"gpu-{name}-cpu.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert {"command", "commit", "hardware", "versions", "peaks", "seconds"} <= document.keys()
    assert "failed" not in document
    common.show_kept(path)
    cases: dict[str, Any] = document["cases"]
    return cases


def rungs(cases: dict[str, Any], kind: str) -> list[str]:
    """Return the rungs that have no figures for a reason of some kind."""
    return sorted({rung for case in cases.values() for rung, figures in case.items() if kind in figures})


def test_training_measures_each_rung_or_says_why_not(tmp_path: Path) -> None:
    cases = run_part("training", tmp_path)
    assert not rungs(cases, "failed")
    assert {"Liger, packed", "Liger, padded sdpa", "packed, FlashAttention 2"} <= set(rungs(cases, "skipped"))
    for length in (8, 16):
        case = cases[f"tiny, rows of {length}"]
        assert list(case) == [rung.name for rung in training.LADDER]
        measured = [figures for figures in case.values() if "skipped" not in figures]
        assert len(measured) == 8
        assert all(figures["tokens_per_second"] > 0 and figures["mfu"] is None for figures in measured)
        assert case["+ LoRA in one operation"]["attention"] == "varlen (packed)"
        assert "flash_attention_for_cpu" in case["+ logits at labels"]["operators"][0]
    (profile,) = cases["tiny, profile of rows of 16"].values()
    assert 0 < sum(share for _, share in profile["largest"]) <= 1.0


def test_training_flops_of_one_row() -> None:
    setup = training.Setup.of(training.shapes.SHAPES["tiny"], torch.device("cpu"))
    table = training.TokenDataset.of([training.shapes.TokenRow([5] * 10, 6)])
    width, inner, keys, vocabulary = 32, 64, 16, 600
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner
    small = 2 * (width + 2 * keys + 2 * width) + width  # biases and norms
    adapter = sum(parameter.numel() for parameter in setup.parameters.values())
    expected = 4 * 10 * (2 * layer + small) + 4 * 4 * width * vocabulary + 6 * 10 * adapter + 6 * 2 * width * 100
    assert training.flops(setup, table, all_logits=False) == expected


def test_packed_rows_on_a_gpu_need_the_kernel_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the package packs by padding them again must not pass for the kernel's."""
    part, _ = new_part(60.0)
    part.document["peaks"] = {"card_flops": None, "gemm_flops": 1.0}
    setup = training.Setup.of(training.shapes.SHAPES["tiny"], part.device)
    rung = next(rung for rung in training.LADDER if rung.attention == "varlen")
    monkeypatch.setattr(measure.Part, "on_gpu", True)
    assert not part.rung("case", rung.name, lambda: training.measure_rung(part, setup, rung, 8))
    assert "not by torch.nn.attention.varlen" in part.document["cases"]["case"][rung.name]["skipped"]
    assert not setup.best_attention


def test_generation_measures_every_engine(tmp_path: Path) -> None:
    cases = run_part("generation", tmp_path)
    assert not rungs(cases, "failed")
    assert rungs(cases, "skipped") == ["our loop, CUDA graphs"]
    assert set(cases) == {"tiny", "tiny, 2 rows", "tiny, 4 rows"}
    assert "generate, static cache, torch.compile" in cases["tiny, 2 rows"]
    assert all(figures["tokens_per_second"] > 0 for figures in cases["tiny, 4 rows"].values() if len(figures) > 1)


def test_tokens_are_exact_and_have_a_share_of_a_round(tmp_path: Path) -> None:
    cases = run_part("tokens", tmp_path)
    assert not rungs(cases, "failed") and not rungs(cases, "skipped")
    assert all(figures["exact"] == 1.0 for rows in (2, 4) for figures in cases[f"{rows} rows"].values())
    assert cases["4 rows"]["splice, warm checker"]["proved"] == 1.0
    a_round = cases["tiny, a round of 8 lines"]
    assert a_round.pop("the models")["generation_seconds"] > 0
    assert a_round.keys() == cases["4 rows"].keys()
    assert all(0 < figures["of_round"] < 1 for figures in a_round.values())


@pytest.mark.parametrize(
    ("part", "measured", "skipped"),
    [
        ("dora", 3, ["DoRA with offload, base in host memory", "DoRA with offload, base on the device"]),
        ("quantized", 2, ["4bit, through the adapter", "8bit, through the adapter"]),
        ("optimizer", 5, []),
    ],
)
def test_single_questions(part: str, measured: int, skipped: list[str], tmp_path: Path) -> None:
    cases = run_part(part, tmp_path)
    assert not rungs(cases, "failed") and rungs(cases, "skipped") == skipped
    assert len(cases["tiny"]) == measured + len(skipped)


# Of torch itself, where it traces an autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_models_are_not_compiled_again_at_a_switch(tmp_path: Path) -> None:
    (case,) = run_part("compiled", tmp_path).values()
    assert not rungs({"": case}, "failed"), case
    assert {name: figures["graphs_after_each_call"][-1] for name, figures in case.items()} == {
        "PEFT, evaluation": 2,
        "PEFT, training": 2,
        "merged copy": 1,
    }
    assert all(figures["recompiles_after_both_were_seen"] == 0 for figures in case.values())


def test_checks_compare_a_whole_run_with_that_of_the_cpu(tmp_path: Path) -> None:
    case = run_part("checks", tmp_path)["checks"]
    run = case["a small whole run"]
    assert run["steps_equal"] and run["token_rows_equal"] and run["equal_rows"] == 1.0
    assert run["largest_loss_difference"] == 0.0 and run["rows"] > 32
    assert case["pytest -m gpu"] == {"skipped": "the gpu tests require a CUDA device"}


def test_run_tests_keeps_counts_and_the_output_of_a_failure(tmp_path: Path) -> None:
    mark = "import pytest\npytestmark = pytest.mark.gpu\ndef test_a(): pass\n"
    (tmp_path / "test_good.py").write_text(mark, encoding="utf-8")
    assert checks.run_tests([str(tmp_path)], 60.0) == {"passed": 1, "exit_code": 0}
    (tmp_path / "test_bad.py").write_text(mark + "def test_b(): assert False\n", encoding="utf-8")
    figures = checks.run_tests([str(tmp_path)], 60.0)
    assert (figures["passed"], figures["failed"], figures["exit_code"]) == (2, 1, 1)
    assert any("test_b" in line for line in figures["output"])


def new_part(seconds: float) -> tuple[measure.Part, list[str]]:
    lines: list[str] = []
    deadline = measure.time.perf_counter() + seconds
    document: dict[str, Any] = {"part": "none", "cases": {}}
    return measure.Part(torch.device("cpu"), [], document, lambda: None, lines.append, deadline), lines


def test_a_failure_is_kept_and_ends_no_part() -> None:
    part, lines = new_part(60.0)

    def fail(error: Exception) -> measure.Figures:
        raise error

    too_large = TrainingError("memory ran out on a single row")
    too_large.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    errors = {
        "memory": torch.OutOfMemoryError("CUDA out of memory"),
        "row": too_large,
        "package": ImportError("no module named 'x'"),
        "model": ModelError("it has no attention of that name"),
        "bug": ValueError("1 is not 2"),
    }
    for name, error in errors.items():
        assert not part.rung("case", name, lambda error=error: fail(error))
    assert part.rung("case", "good", lambda: {"ms": 1.5})
    case = part.document["cases"]["case"]
    assert [next(iter(figures)) for figures in case.values()] == [*2 * ["failed"], *2 * ["skipped"], "failed", "ms"]
    assert "out of memory" in case["row"]["failed"] and case["bug"]["failed"] == "ValueError: 1 is not 2"
    assert len(lines) == 6 and "1 is not 2" in lines[4]
    shown = io.StringIO()
    show_part(part.document, Console(file=shown, width=120))
    assert "1 is not 2" in shown.getvalue() and "1.5" in shown.getvalue()


def test_what_the_time_does_not_suffice_for_is_skipped_aloud(tmp_path: Path) -> None:
    part, lines = new_part(10.0)
    assert not part.rung("case", "long", lambda: {"ms": 1.0}, needs=60.0)
    assert "of this part were left" in part.document["cases"]["case"]["long"]["skipped"] and len(lines) == 1
    cases = run_part("optimizer", tmp_path, "--seconds", "0")
    assert list(cases["tiny"]) == ["build"] and rungs(cases, "skipped") == ["build"]


def test_parts_behind_a_broken_device_run_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(arguments: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        started.append(arguments)
        return subprocess.CompletedProcess(arguments, 3, "", "")

    monkeypatch.setattr(command, "still_works", lambda device: False)
    monkeypatch.setattr(command.subprocess, "run", run)
    asked = ["--shapes", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert command.main(["--parts", "optimizer,dora,compiled", *asked]) == 3
    again = command.parse(started[-1][3:])
    assert (again.parts, again.shapes, again.out) == (["dora", "compiled"], ["tiny"], tmp_path)
    assert 0 < again.seconds < 480 and not (tmp_path / "gpu-dora-cpu.json").exists()


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA A10G", None),
    ],
)
def test_card_peaks(name: str, flops: float | None) -> None:
    peaks = measure.card_peaks(name)
    assert (peaks[0] if peaks else None) == flops


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--parts", "training,trainig"])
    assert "trainig" in capsys.readouterr().err
