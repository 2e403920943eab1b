"""Export: one direction of a run for other software, with tokenizer, prompt and model card."""

import copy
import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from roundtrip.backtranslation import model_card, trained_models
from roundtrip.backtranslation.run_folder import BEST, RunFolder, require_plain_path
from roundtrip.backtranslation.trained_models import ExportedDirection
from roundtrip.engine.translator import Translator
from roundtrip.models import adapters
from roundtrip.runtime import integrity
from roundtrip.runtime.atomic_io import atomic_path, is_writable, remove_path, write_json
from roundtrip.runtime.disk_space import report_full_disk, report_system_errors
from roundtrip.runtime.errors import RunError, UsageError
from roundtrip.tokens.prompt_segments import Segments

# Texts on which the chat template is compared with our prompts.
_PROBES = ("Save the file", "línea — 家", "(1) <b>100 %</b>", "a")


@report_system_errors()
def export(
    run_dir: Path | str,
    direction: str,
    folder: Path | str,
    *,
    stage: str = BEST,
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
        UsageError: a `dtype` without `merged`.

    Example:
        >>> export(run_dir, "en-es", out_dir / "merged", merged=True)
        True
    """
    return export_all(run_dir, {direction: Path(folder)}, stage, merged, dtype)[direction]


def export_all(
    run_dir: Path | str, folders: Mapping[str, Path], stage: str, merged: bool, dtype: str | None
) -> dict[str, bool]:
    """Write directions of a run, each into a folder, or none of them; see `export`."""
    run, has_template, written = RunFolder(Path(run_dir)), dict[str, bool](), dict[Path, tuple[int, int]]()
    if dtype and not merged:
        raise UsageError("applies to merged models only", place="dtype", cure="add merged (--merged), or omit dtype")
    for folder in folders.values():
        refuse_used(folder)
    try:
        with ExitStack() as stack:  # which renames the folders when all are written
            for name, folder in folders.items():
                direction = trained_models.direction_named(run, name)
                # Merged into weights of 4 or 8 bits, the sum would be rounded to them again.
                translator = trained_models.load(run, direction, stage, "cpu", quantize="none")
                stack.enter_context(report_full_disk(folder, cure="free disk space and repeat the command"))
                temporary = stack.enter_context(atomic_path(folder.absolute()))
                has_template[name] = _write(run, translator, temporary, stage, merged, dtype)
                written[folder] = _identity(temporary)
                del translator  # before the next one takes as much memory
    except BaseException:
        for folder, identity in written.items():
            with suppress(FileNotFoundError):
                if _identity(folder) == identity:  # renamed before another failed
                    remove_path(folder)
        raise
    return has_template


def _identity(folder: Path) -> tuple[int, int]:
    """Return what a rename keeps of a folder, and another one has not."""
    status = folder.stat()
    return status.st_ino, status.st_mtime_ns


def _write(run: RunFolder, translator: Translator, folder: Path, stage: str, merged: bool, dtype: str | None) -> bool:
    """Write one direction into a new folder; return whether there is a chat template."""
    direction, metrics = translator.direction, run.results()
    run.check_files(run.recipe_file)
    stage = metrics["best"][direction.name] if stage == BEST and metrics else stage
    folder.mkdir()
    if merged or translator.direction_model.trains_all_weights:
        translator.direction_model.merged(dtype).save_pretrained(folder)
    else:
        translator.direction_model.export(folder)
        _name_base(translator, folder, Path(run.manifest().folder))
    has_template = _write_tokenizer(translator, folder)
    facts = (translator.template.segments, translator.expansion, translator.base.digest)
    files = integrity.file_hashes(folder, folder)
    trained_models.write_template(folder, ExportedDirection(direction.source, direction.target, *facts, files))
    card = model_card.text(run, translator, metrics, stage, is_model(folder), has_template)
    (folder / trained_models.CARD).write_text(card, encoding="utf-8")
    return has_template


def _name_base(translator: Translator, folder: Path, recipe_folder: Path) -> None:
    """Name the base of an exported adapter so that another machine finds it, by its commit if it is on the hub."""
    config, spec = folder / adapters.CONFIG, translator.direction_model.spec
    base = model_card.exported_base(str(spec.path), recipe_folder)
    revision = translator.base.commit or spec.revision
    document = json.loads(config.read_text(encoding="utf-8"))
    write_json(config, document | {"base_model_name_or_path": base, "revision": revision})


def is_model(folder: Path) -> bool:
    """Return whether an exported direction is a plain model, not an adapter."""
    return (folder / "config.json").exists()


def base_off_hub(folder: Path) -> str | None:
    """Return the base of an exported adapter that only the machine or person who made it has, else None."""
    if is_model(folder):
        return None
    base = str(json.loads((folder / adapters.CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
    return base if base.startswith(model_card.OFF_HUB) else None


def refuse_used(folder: Path) -> None:
    """Refuse a folder that has something in it, or cannot be made."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise RunError("is a file", place=str(existing), cure="name a folder")
    if existing == folder.absolute() and any(folder.iterdir()):
        raise RunError("is not empty", place=str(folder), cure="name another folder")
    if not is_writable(folder):
        raise RunError("cannot be written", place=str(folder), cure="name another folder")
    require_plain_path(folder)


def _write_tokenizer(translator: Translator, folder: Path) -> bool:
    """Write tokenizer and generation settings; return whether the chat template reproduces our prompts."""
    segments, tokenizer = translator.template.segments, copy.deepcopy(translator.base.tokenizer)
    tokenizer.chat_template = chat_template(segments, tokenizer)
    messages = [[{"role": "user", "content": text}] for text in _PROBES]
    prompts = [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=False) for each in messages]
    has_template = bool(prompts == translator.template.prompts(_PROBES))
    if not has_template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        do_sample=False,
        bos_token_id=next(iter(segments.prefix_ids), None),
        eos_token_id=sorted({segments.end_id, *segments.stop_ids, *segments.break_ids}),
        pad_token_id=translator.base.pad_id,
    ).save_pretrained(folder)
    return has_template


def chat_template(segments: Segments, tokenizer: Any) -> str:
    """Return a Jinja template that renders the prompt of a source, and the training row of a source and a target."""
    prefix = "".join(tokenizer.convert_ids_to_tokens(list(segments.prefix_ids)))
    texts = (prefix + segments.head, segments.mid, segments.mid.rstrip(" "))
    head, mid, prompt_end = (json.dumps(text, ensure_ascii=False) for text in texts)
    end = json.dumps(tokenizer.convert_ids_to_tokens(segments.end_id), ensure_ascii=False)
    return (
        "{%- for message in messages %}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{- {head} + message['content'] }}}}"
        "{%- elif message['role'] == 'assistant' %}"
        f"{{{{- {mid} + message['content'] + {end} }}}}"
        "{%- else %}{{- raise_exception('The user message is the text to translate; there is no other.') }}{%- endif %}"
        "{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- {prompt_end} }}}}{{%- endif %}}"
    )
