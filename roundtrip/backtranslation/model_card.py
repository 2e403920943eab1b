"""The model card of an exported direction: what it is, how to use it, its scores, how it was made."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from roundtrip import __version__
from roundtrip.backtranslation.labels import control_title
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.engine.translator import Translator
from roundtrip.evaluation.tables import comparison_text
from roundtrip.recipe.language_codes import language_name
from roundtrip.recipe.plan import FINAL, INITIAL, PARALLEL, PRETRAIN, Direction, is_control
from roundtrip.recipe.schema import Recipe
from roundtrip.runtime.downloads import is_hub_id

# The folders of an absolute path in a recipe.
_ABSOLUTE = re.compile(r"""(?<=["'=])(?:~?[/\\]|[A-Za-z]:[/\\])(?:[^"'\n]*[/\\])?(?=[^"'\n])""")
# How the name of a base begins that transformers does not find by itself.
OFF_HUB = ("./", "pypi:")
_METRICS = {"chrf": "chrF++", "bleu": "BLEU"}
_USE = """## Use

The user message is the text to translate, and nothing else: the tokenizer's chat template adds the prompt that the \
model was trained with (its parts are `segments` in `template.json`). The scores are those of greedy decoding.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER"){base}
message = [{{"role": "user", "content": "..."}}]
ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")
new = model.generate(**ids, max_new_tokens=200)[0, ids['input_ids'].shape[1] :]
print(tokenizer.decode(new, skip_special_tokens=True).strip(){first_line})
```"""
_USE_WITHOUT_TEMPLATE = """## Use

This tokenizer encodes a prompt from a chat template differently than in training, so it has none. Encode \
`head + text + mid` of the `segments` in `template.json` as one text, behind the tokens of `prefix_ids`, and \
generate greedily until one of the tokens in `generation_config.json`."""

_NEEDS_BASE = """## The base is not on the hub

The adapter is for `{base}`, whose files have the hash `{digest}`. Load that model, and the adapter on it with \
`PeftModel.from_pretrained(model, "FOLDER")`; `roundtrip evaluate` takes it as `--base`. `roundtrip export RUN OUT \
--merged` writes a model that needs no base."""


def exported_base(path: str, folder: Path) -> str:
    """Return what an exported adapter calls its base: a hub id, an address, or a name without the folders it is in."""
    return path if path.startswith("pypi:") or is_hub_id(path, folder) else f"./{Path(path).name}"


def text(
    run: RunFolder, translator: Translator, metrics: dict[str, Any], stage: str, is_model: bool, has_template: bool
) -> str:
    """Return the card of a model or an adapter; `metrics` is `metrics.json`, empty where the run has not finished."""
    direction, recipe, manifest = translator.direction, run.recipe(), run.manifest()
    path, names = recipe.model[direction.name].path, recipe.template.names
    target = language_name(direction.target, names)
    scores = metrics.get("test", {}).get(stage, {}).get(direction.name, {})
    test_set = f"test set of the run, {metrics['lines']['test']['kept']} lines" if scores else ""
    results = [
        EvalResult("translation", "text", test_set, metric, round(scores[metric], 2), metric_name=metric_name)
        for metric, metric_name in (_METRICS.items() if scores else ())
    ]
    data = ModelCardData(
        language=[direction.source, direction.target],
        base_model=path if path and is_hub_id(path, Path(manifest.folder)) else None,
        library_name="transformers" if is_model else "peft",
        pipeline_tag="translation",
        tags=["translation", "back-translation", "roundtrip"],
        model_name=f"{run.path.name}-{direction.name}",
        eval_results=results or None,
    )
    base_name = exported_base(str(path), Path(manifest.folder))
    needs_base = not is_model and base_name.startswith(OFF_HUB)
    base = "" if is_model else "  # with peft installed; the base is found by adapter_config.json"
    first_line = ".split('\\n')[0]" if translator.template.segments.break_ids else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(language_name(direction.source, names))} to {_plain(target)}",
        f"{_what(recipe, translator, is_model, base_name)} {_how(recipe, direction, stage, names)}",
        _NEEDS_BASE.format(base=base_name, digest=translator.base.digest) if needs_base else "",
        _USE.format(base=base, first_line=first_line) if has_template else _USE_WITHOUT_TEMPLATE,
        _scores(metrics, direction.name, stage),
        _control(metrics, direction.name),
        _samples(metrics, direction.name, stage),
        f"## How it was made\n\nStage `{stage}`, seed {metrics.get('seed', '?')}, versions of the libraries and the "
        f"whole recipe:\n\n{_pre(json.dumps(manifest.versions, indent=1))}\n\n"
        f"{_pre(_ABSOLUTE.sub('', run.recipe_file.read_text(encoding='utf-8')))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(recipe: Recipe, translator: Translator, is_model: bool, base: str) -> str:
    adapter, spec = translator.direction_model.adapter, recipe.model[translator.direction.name]
    base = "random weights" if spec.from_scratch else _plain(base.removeprefix("./").partition("#")[0])
    if translator.direction_model.trains_all_weights:
        return f"A causal language model, all weights of which were trained, from {base}."
    kind = f"{adapter.method}, rank {adapter.rank}"
    note = " vLLM serves no DoRA adapter: export it with `--merged` for that." if "dora" in adapter.method else ""
    return f"{base} with an adapter ({kind}) merged in." if is_model else f"An adapter ({kind}) for {base}.{note}"


def _how(recipe: Recipe, direction: Direction, stage: str, names: Mapping[str, str]) -> str:
    target = language_name(direction.target, names)
    if stage == INITIAL:
        start = "the adapter of `adapter.init`" if recipe.adapter[direction.name].init else "a new adapter"
        return f"It is {start}, not trained further in this run."
    if stage == PRETRAIN:
        how = "on monolingual text"
    elif stage == PARALLEL or is_control(stage) or (stage == FINAL and not recipe.rounds.count):
        how = "on parallel text"
    else:
        how = f"by back-translation: on {_plain(target)} text, with sources generated by the reverse direction"
    return f"It was trained with roundtrip {__version__} {how}."


def _scores(metrics: dict[str, Any], name: str, stage: str) -> str:
    if not metrics:
        return "The run has not finished: there are no scores."
    if not metrics["test"]:
        return "The run has no test set: there are no test scores."
    rows = []
    for row, scores in metrics["test"].items():
        label = f"**{_plain(row)}**" if row == stage else _plain(row)
        rows.append([label, *(f"{scores[name][metric]:.1f}" for metric in _METRICS)])
    signatures = "\n".join(f"- `{value}`" for value in metrics["signatures"][name].values())
    return (
        f"## Scores on the run's test set\n\n{_table(('stage', *_METRICS.values()), rows)}\n\nOne seed. `copy` is the "
        f"source itself, `base` the model before training. sacreBLEU signatures:\n\n{signatures}"
    )


def _control(metrics: dict[str, Any], name: str) -> str:
    comparison = metrics.get("control", {}).get(name)
    if comparison is None:
        return ""
    rows = "\n".join(f"- {comparison_text(result)}" for result in comparison["metrics"])
    how = f"{_plain(control_title(comparison))}, each the best on dev; paired bootstrap"
    return f"## What the rounds bring\n\n{how}, {comparison['samples']} samples:\n\n{rows}"


def _samples(metrics: dict[str, Any], name: str, stage: str) -> str:
    samples = metrics.get("samples", {}).get(name, []) if metrics and metrics["best"][name] == stage else []
    if not samples:
        return ""
    rows = [[_plain(sample[key]) for key in ("source", "hypothesis", "reference")] for sample in samples]
    return f"## Random samples\n\n{_table(('source', 'translation', 'reference'), rows)}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _plain(value: str) -> str:
    """Escape text for a table cell: neither HTML nor Markdown may interpret anything in it."""
    # An underscore inside a word emphasizes nothing.
    special = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")
    escaped = special.sub(lambda match: f"&#{ord(match.group())};", html.escape(value, quote=False))
    return " ".join(escaped.split())


def _pre(value: str) -> str:
    """Return text as a preformatted block that it cannot end itself."""
    return f"<pre>\n{html.escape(value.strip(), quote=False)}\n</pre>"
