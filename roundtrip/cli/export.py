"""roundtrip export RUN OUT: writes directions for other software, with tokenizer, prompt and model card."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from roundtrip.cli.app import open_run, run_cli
from roundtrip.recipe.plan import directions
from roundtrip.runtime.atomic_io import write_json
from roundtrip.runtime.errors import RunError
from roundtrip.runtime.event_log import print_line

# Texts on which the chat template is compared with our prompts.
_PROBES = ("Save the file", "línea — 家", "(1) <b>100 %</b>", "a")

if TYPE_CHECKING:
    from roundtrip.engine.translator import Translator
    from roundtrip.tokens.prompt_segments import Segments


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="roundtrip export",
        description="Write folders that transformers, PEFT and vLLM read: OUT/en-es and OUT/es-en.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--to", metavar="LANGUAGE", help="only the direction into this language (default: both)")
    parser.add_argument("--stage", default="best", help="which weights: best (default), parallel, round-1, ...")
    parser.add_argument("--merged", action="store_true", help="one plain model instead of an adapter for the base")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of a merged model (default: as the base)"
    )
    run_cli(export_run, parser)


def export_run(arguments: argparse.Namespace) -> None:
    """Write one direction of a run, or both, each into a folder of its own."""
    run, recipe = open_run(arguments.run)
    from roundtrip.backtranslation import trained_models

    chosen = [trained_models.direction_into(run, arguments.to)] if arguments.to else list(directions(recipe))
    folders = {direction: arguments.out / direction.name for direction in chosen}
    for folder in folders.values():
        _refuse_used(folder)
    console = Console()
    for direction, folder in folders.items():
        has_template = export(
            run.path, direction.name, folder, stage=arguments.stage, merged=arguments.merged, dtype=arguments.dtype
        )
        kind = "a model" if (folder / "config.json").exists() else "an adapter"
        print_line(console, f"{folder}: {kind}")
        if not has_template:
            print_line(
                console, "  no chat template, since its tokenizer would not reproduce our prompts; see README.md"
            )


def _refuse_used(folder: Path) -> None:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RunError("is a file", place=str(existing), cure="name a folder")
    if existing == folder.absolute() and any(folder.iterdir()):
        raise RunError("is not empty", place=str(folder), cure="name another folder")


def export(
    run_dir: Path | str,
    direction: str,
    folder: Path | str,
    *,
    stage: str = "best",
    merged: bool = False,
    dtype: str | None = None,
) -> bool:
    """Write one direction of a run into a folder.

    The exported tokenizer carries a chat template that turns a user message, which is the source text and nothing
    else, into the prompt of training, so that `apply_chat_template`, pipelines and vLLM's chat use the model as it was
    trained. Where that is impossible (some tokenizers treat text after a spelt-out BOS differently) it has none.

    Args:
        run_dir: folder of the run.
        direction: such as `en-es`.
        folder: new or empty.
        stage: `best`, or `parallel`, `round-1`, ...
        merged: write a plain model; where all weights were trained it is one anyway.
        dtype: `float32`, `bfloat16` or `float16`, of a merged model; the base's where None.

    Returns:
        Whether there is a chat template.

    Raises:
        RunError: not a run, no such direction or stage, or the folder is in use.

    Example:
        >>> export(run_dir, "en-es", out_dir / "merged", merged=True)
        True
    """
    from roundtrip.backtranslation import trained_models
    from roundtrip.backtranslation.run_folder import RunFolder
    from roundtrip.cli import model_card

    run, folder = RunFolder(Path(run_dir)), Path(folder)
    if dtype and not merged:
        raise RunError("applies to merged models only", place="dtype", cure="add merged (--merged), or omit dtype")
    _refuse_used(folder)
    # Merged into weights of 4 or 8 bits, the sum would be rounded to them again.
    changes = {"quantize": "none"}
    translator = trained_models.load(run, trained_models.direction_named(run, direction), stage, "cpu", changes)
    folder.mkdir(parents=True, exist_ok=True)
    if merged or translator.direction_model.trains_all_weights:
        translator.direction_model.merged(dtype).save_pretrained(folder)
    else:
        translator.direction_model.export(folder)
    has_template = _write_tokenizer(translator, folder)
    metrics = json.loads(run.metrics.read_text(encoding="utf-8")) if run.metrics.exists() else {}
    stage = metrics.get("best", stage) if stage == "best" else stage
    is_model = (folder / "config.json").exists()
    card = model_card.text(run, translator, metrics, stage, is_model, has_template=has_template)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return has_template


def _write_tokenizer(translator: Translator, folder: Path) -> bool:
    """Write tokenizer, generation settings and template; return whether the chat template reproduces our prompts."""
    from transformers import GenerationConfig

    segments, tokenizer = translator.template.segments, copy.deepcopy(translator.base.tokenizer)
    tokenizer.chat_template = chat_template(segments, tokenizer)
    messages = [[{"role": "user", "content": text}] for text in _PROBES]
    prompts = [
        tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False) for message in messages
    ]
    has_template = bool(prompts == translator.template.prompts(_PROBES))
    if not has_template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        do_sample=False,
        bos_token_id=segments.bos_id,
        eos_token_id=sorted({segments.end_id, *segments.stop_ids, *segments.break_ids}),
        pad_token_id=translator.base.pad_id,
    ).save_pretrained(folder)
    template = {"direction": translator.direction.name, "expansion": translator.expansion, **segments.to_dict()}
    write_json(folder / "template.json", template)
    return has_template


def chat_template(segments: Segments, tokenizer: Any) -> str:
    """Return a Jinja template that renders the prompt of a source, and the training row of a source and a target."""
    bos = "" if segments.bos_id is None else tokenizer.convert_ids_to_tokens(segments.bos_id)
    end = tokenizer.convert_ids_to_tokens(segments.end_id)
    head, mid, prompt_end = (
        json.dumps(text, ensure_ascii=False) for text in (bos + segments.head, segments.mid, segments.mid.rstrip(" "))
    )
    return (
        "{%- for message in messages %}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{- {head} + message['content'] }}}}"
        "{%- elif message['role'] == 'assistant' %}"
        f"{{{{- {mid} + message['content'] + {json.dumps(end, ensure_ascii=False)} }}}}"
        "{%- else %}{{- raise_exception('The user message is the text to translate; there is no other.') }}{%- endif %}"
        "{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- {prompt_end} }}}}{{%- endif %}}"
    )
