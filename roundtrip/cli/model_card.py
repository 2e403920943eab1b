"""The model card of an exported direction: what it is, how to ask it, how good it is, how it was made."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from roundtrip import __version__
from roundtrip.backtranslation.run_folder import BEST, RunFolder
from roundtrip.engine.translator import Translator
from roundtrip.recipe.plan import FINAL, PARALLEL, PRETRAIN
from roundtrip.tokens.prompt_segments import language_name

_METRICS = {"chrf": "chrF++", "bleu": "BLEU"}


def write(run: RunFolder, one: Translator, folder: Path, stage: str, *, has_template: bool = True) -> None:
    """Write README.md into the folder of an exported direction.

    Args:
        has_template: the tokenizer there makes our prompts by its chat template.
    """
    metrics = json.loads(run.metrics.read_text(encoding="utf-8")) if run.metrics.exists() else {}
    stage = str(metrics.get("best") or stage) if stage == BEST else stage
    (folder / "README.md").write_text(
        text(run, one, metrics, stage, _is_model(folder), has_template=has_template), encoding="utf-8"
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").exists()


def text(
    run: RunFolder, one: Translator, metrics: dict[str, Any], stage: str, is_model: bool, *, has_template: bool = True
) -> str:
    """Return the card.

    Args:
        metrics: `metrics.json` of the run; empty where it has not come to its end.
        stage: whose scores are shown.
        is_model: a plain model, not an adapter.
    """
    direction = one.direction
    source, target = language_name(direction.source), language_name(direction.target)
    scores = metrics.get("test", {}).get(stage, {}).get(direction.name, {})
    data = ModelCardData(
        language=[direction.source, direction.target],
        base_model=_hub_id(run, one),
        library_name="transformers" if is_model else "peft",
        pipeline_tag="translation",
        tags=["translation", "back-translation", "roundtrip"],
        model_name=f"{run.path.name}-{direction.name}",
        eval_results=[
            EvalResult(
                task_type="translation",
                dataset_type="text",
                dataset_name=f"test set of the run, {metrics['lines']['test']['kept']} lines",
                metric_type=metric,
                metric_name=name,
                metric_value=round(scores[metric], 2),
            )
            for metric, name in _METRICS.items()
            if metric in scores
        ]
        or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(source)} to {_plain(target)}",
        f"{_what(run, one, is_model)} {_how(one, stage, target, has_rounds=bool(run.recipe().rounds.count))}",
        _usage(one, is_model) if has_template else _usage_without(one),
        _scores(one, metrics, stage),
        _samples(metrics, direction.name, stage),
        f"## How it was made\n\nStage `{stage}`, seed {metrics.get('seed', '?')}, versions of the libraries and the "
        f"whole recipe:\n\n{_pre(json.dumps(run.manifest().versions, indent=1))}\n\n"
        f"{_pre((run.path / 'recipe.toml').read_text(encoding='utf-8'))}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _hub_id(run: RunFolder, one: Translator) -> str | None:
    """Return the base where it is one that others can find by this name."""
    spec = run.recipe().model[one.direction.name]
    local = spec.path is None or spec.path.count("/") != 1 or spec.path.startswith((".", "/", "~", "pypi:"))
    return None if local or Path(one.base.location).exists() else spec.path


def _what(run: RunFolder, one: Translator, is_model: bool) -> str:
    adapter, spec = one.direction_model.adapter, run.recipe().model[one.direction.name]
    base = _plain(spec.name if spec.from_scratch is None else "random weights")
    if one.direction_model.trains_all_weights:
        return f"A causal language model, all weights of which were trained, from {base}."
    kind = f"{adapter.method}, rank {adapter.rank}"
    note = " vLLM serves no DoRA adapter: export it with `--merged` for that." if "dora" in adapter.method else ""
    return f"{base} with an adapter ({kind}) merged in." if is_model else f"An adapter ({kind}) for {base}.{note}"


def _how(one: Translator, stage: str, target: str, *, has_rounds: bool) -> str:
    by = f"It was trained with roundtrip {__version__}"
    if stage == PRETRAIN:
        return f"{by} on plain text."
    if stage == PARALLEL or (stage == FINAL and not has_rounds):
        return f"{by} on translated lines."
    return f"{by} on real {_plain(target)} text, for which the other direction wrote the sources (back-translation)."


def _usage_without(one: Translator) -> str:
    return (
        "## Use\n\nThis tokenizer makes other tokens of a prompt that a chat template made, so it has none. Encode "
        "`head + text + mid` of `template.json` as one text, with the BOS token where `bos_id` names one, and generate "
        "greedily until one of the tokens in `generation_config.json`."
    )


def _usage(one: Translator, is_model: bool) -> str:
    first = ".split('\\n')[0]" if one.template.segments.break_ids else ""
    base = "" if is_model else "  # with peft installed; the base is found by adapter_config.json"
    return (
        "## Use\n\nThe user message is the text to translate, and nothing else: the tokenizer's chat template puts the "
        "prompt around it that the model was trained with (`template.json` has it in parts). Greedy search is what "
        "was scored.\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f'model = AutoModelForCausalLM.from_pretrained("FOLDER"){base}\n'
        'message = [{"role": "user", "content": "..."}]\n'
        'ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")\n'
        "new = model.generate(**ids, max_new_tokens=200)[0, ids['input_ids'].shape[1] :]\n"
        f"print(tokenizer.decode(new, skip_special_tokens=True).strip(){first})\n```"
    )


def _scores(one: Translator, metrics: dict[str, Any], stage: str) -> str:
    if not metrics:
        return "The run has not come to its end: there are no scores."
    name = one.direction.name
    lines = ["| after | chrF++ | BLEU |", "|---|---|---|"]
    for row, scores in metrics["test"].items():
        mark = "**" if row == stage else ""
        lines.append(f"| {mark}{_plain(row)}{mark} | {scores[name]['chrf']:.1f} | {scores[name]['bleu']:.1f} |")
    signatures = "\n".join(f"- `{value}`" for value in metrics["signatures"][name].values())
    return (
        f"## Scores on the run's test set\n\n{chr(10).join(lines)}\n\nOne seed. `copy` is the source itself, `base` "
        f"the model before training. sacreBLEU signatures:\n\n{signatures}"
    )


def _samples(metrics: dict[str, Any], name: str, stage: str) -> str:
    samples = metrics.get("samples", {}).get(name, []) if metrics.get("best") == stage else []
    if not samples:
        return ""
    rows = [
        f"| {_plain(one['source'])} | {_plain(one['hypothesis'])} | {_plain(one['reference'])} |" for one in samples
    ]
    return "\n".join(["## Samples, chosen by chance\n", "| source | translation | reference |", "|---|---|---|", *rows])


def _plain(value: str) -> str:
    """Return text that neither HTML nor Markdown reads anything into."""
    escaped = html.escape(value, quote=False)
    for character in "\\`*_[]|#~$":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return " ".join(escaped.split())


def _pre(value: str) -> str:
    """Return text as a block that ends where we end it."""
    return f"<pre>\n{html.escape(value.strip(), quote=False)}\n</pre>"
