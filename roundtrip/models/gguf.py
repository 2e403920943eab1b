"""Converting a GGUF file, once, to a bf16 folder that plain `from_pretrained` reads.

What transformers does not support in a GGUF it omits or replaces silently: such files are refused or corrected.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from roundtrip.models.model_files import bounded_build
from roundtrip.runtime import cached_folders, integrity
from roundtrip.runtime.errors import ModelError, RoundtripError, first_line

USE_SAFETENSORS = "use the safetensors of the same model"

# Of the lists of a vocabulary, as tokens and merges: converting 49,152 tokens and their merges takes 5 seconds, and the
# largest vocabularies have 262,144 tokens and some 515,000 merges.
_MAX_LIST = 1_000_000

logger = logging.getLogger(__name__)


def convert(path: Path, cache: Path) -> Path:
    """Convert a GGUF file to a model folder, `models/<hash of the file>-bf16` in the cache, unless it is there."""
    try:
        digest = integrity.file_hash(path)
    except OSError as error:
        problem = f"the file cannot be read: {error.strerror}"
        raise _problem(path, problem, "check the path and its permissions") from error
    folder = cache / "models" / f"{digest[:16]}-bf16"

    def make(target: Path) -> None:
        logger.info("%s: converting to safetensors in %s, once", path, folder)
        work = target / ".work"
        work.mkdir()
        _save(*_read(path, work), target)
        shutil.rmtree(work)
        if integrity.file_hash(path) != digest:
            raise _problem(path, "it has changed while it was converted", "start again when it is complete")

    cached_folders.ensure(folder, digest, make, _all_but_weights)
    return folder


def _all_but_weights(folder: Path) -> list[Path]:
    # The weights are hashed when the base is loaded.
    return [path for path in folder.iterdir() if path.suffix != ".safetensors"]


def _read(path: Path, work: Path) -> tuple[Any, Any]:
    # Alone in its folder: a tokenizer.json there would take precedence over the file's own tokenizer.
    alone = work / "model.gguf"
    try:
        alone.symlink_to(path.absolute())
    except OSError:  # no permission to make links, as on Windows
        shutil.copyfile(path, alone)
    try:
        eos, eot, num_tokens, num_tensors, num_weights = _facts(alone, path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(work, gguf_file=alone.name)
        tokenizer = _without_added_tokens(tokenizer, num_tokens, work / "tokenizer")
        with bounded_build(num_tensors, num_weights, str(path)):
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                work,
                gguf_file=alone.name,
                dtype=torch.bfloat16,
                # Otherwise a machine with a GGUF matmul kernel keeps blocks that cannot be saved.
                quantization_config=transformers.GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except RoundtripError:
        raise
    except ImportError as error:
        problem = f"reading GGUF requires another package: {first_line(error)}"
        raise _problem(path, problem, "pip install gguf accelerate") from error
    except Exception as error:  # the readers of damaged files may raise anything
        version = transformers.__version__
        cure = f"check that it is complete; if so, transformers {version} does not support its kind: {USE_SAFETENSORS}"
        problem = f"cannot be read as GGUF: {type(error).__name__}: {first_line(error)}"
        raise _problem(path, problem, cure) from error
    if missing := sorted(report["missing_keys"]):
        raise _problem(path, f"{len(missing)} weights of the model are not in it, among them {missing[0]}")
    num_rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_rows:
        raise _problem(path, f"its tokenizer has {len(tokenizer)} tokens, its model only {num_rows}")
    num_taken = sum(weight.numel() for weight in model.parameters())
    if num_taken != num_weights:
        logger.warning("%s: holds %d weights, the model has %d", path, num_weights, num_taken)
    # The configuration class may have an end token of its own.
    model.config.eos_token_id = eos
    # Chat models may end a turn with another token than a text; generation has to stop at both.
    model.generation_config.eos_token_id = eos if eot in (None, eos) else [eos, eot]
    return model, tokenizer


def _problem(path: Path, problem: str, cure: str = USE_SAFETENSORS) -> ModelError:
    return ModelError(problem, place=str(path), cure=cure)


def _facts(path: Path, original: Path) -> tuple[int, int | None, int, int, int]:
    """Refuse files that transformers would load as a different model; return what it does not: the end tokens of a text
    and of a turn, the number of tokens, of tensors and of weights.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    values = {key: field.contents() for key, field in reader.fields.items() if len(field.data) == 1}
    architecture = values["general.architecture"]
    # Llama 3.1 and Phi-3 files name no scaling; they carry its factors as tensors.
    factors = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or factors:
        name = scaling if scaling != "none" else factors[0]
        raise _problem(original, f"its rotary positions are scaled ({name}), which is lost in reading GGUF")
    num_layers = values.get(f"{architecture}.block_count", 0)
    if num_layers > len(reader.tensors):  # damaged, and to create so many layers would not end
        problem = f"it declares {num_layers} layers and holds only {len(reader.tensors)} tensors"
        raise _problem(original, problem, "fetch the file again")
    for key, field in reader.fields.items():
        if len(field.data) > _MAX_LIST:
            raise _problem(original, f"its {key} has {len(field.data):,} items, more than {_MAX_LIST:,}")
    num_tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    eos, eot = (values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    if eos is None:
        raise _problem(original, "it does not name its end-of-text token (tokenizer.ggml.eos_token_id)")
    return eos, eot, num_tokens, len(reader.tensors), sum(int(tensor.n_elements) for tensor in reader.tensors)


def _without_added_tokens(tokenizer: Any, num_tokens: int, folder: Path) -> Any:
    """Remove tokens that the tokenizer class adds, like `<|endoftext|>` for Llama 3: they have no embedding."""
    if len(tokenizer) <= num_tokens:
        return tokenizer
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < num_tokens]
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    # Saving is refused while a quantizer is attached, and every later load would go through GGUF again.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
