"""The files of a model, found and checked by us: transformers is given a folder with these, and with nothing else.

So no pickle, program, adapter or setting that lies beside them is read, and what is read is what `digest` covers.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from roundtrip.models.tensor_files import read_dtypes, require_file
from roundtrip.runtime import hub
from roundtrip.runtime.cached_folders import recorded_hashes
from roundtrip.runtime.errors import ModelError, first_line
from roundtrip.runtime.integrity import file_hash

CONFIG, GENERATION, _TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_TEMPLATES = "additional_chat_templates"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
PICKLE = "a pickle, which can execute arbitrary code when it is loaded"
CONVERT = (
    "take the safetensors of the same model; if you trust its author, make them: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
)
_RESTORE = "use the file as the author of the model has published it"
# JSON may need 25 times its size in memory; the largest index that is known has 14 MB, the largest tokenizer 61 MB.
_MAX_JSON_BYTES, _MAX_FILE_BYTES = 32 << 20, 128 << 20
# Those that list the added tokens of a tokenizer have up to 1.2 MB.
_MAX_SETTINGS_BYTES = 4 << 20
# Larger numbers in a configuration are positions and frequencies, not sizes; numbers of tokens fit into 32 bits.
_MAX_LAYERS, _MAX_SIZE, _MAX_TOKEN, _MAX_OTHER = 10_000, 1 << 24, 1 << 31, 1 << 53
_LARGE = ("theta", "base", "position", "length", "window", "seq_len", "ctx")
# Settings that choose how a model is computed, stored or returned instead of which one it is: those are ours to make.
_NOT_THE_MODELS = {
    *("attn_implementation", "experts_implementation", "fusion_config", "kernel_config", "use_kernels"),
    *("distributed_config", "tp_plan", "tp_size", "device_map", "configuration_files", "name_or_path", "gguf_file"),
    *("dtype", "torch_dtype", "torchscript", "return_dict", "use_return_dict", "output_attentions"),
    *("output_hidden_states", "output_router_logits", "gradient_checkpointing", "use_bfloat16", "compile_config"),
    *("task_specific_params", "trust_remote_code", "sub_configs", "base_model_tp_plan", "base_model_pp_plan"),
}
# By this key transformers writes numbers that are not finite, as a limit without an end.
_FLOAT = "__float__"
# Packages that read quantized weights without fetching kernels.
_QUANTIZED_BY = ("bitsandbytes",)


@dataclass(frozen=True)
class ModelFiles:
    """What is read of a model."""

    location: str  # folder or hub id
    paths: dict[str, Path]  # by the names that files have in the model's folder
    documents: dict[str, dict[str, Any]]  # what transformers is given instead of some of them
    weights: tuple[str, ...]  # names of the files with weights; none where they were not asked for
    commit: str | None = None  # of a hub id

    def digest(self) -> str:
        """Return a hash of all files as they are published; those that were converted to the cache are checked."""
        digest = hashlib.sha256()
        recorded = recorded_hashes(Path(self.location)) if Path(self.location).is_absolute() else {}
        for name, path in sorted(self.paths.items()):
            each = file_hash(path)
            if recorded.get(name, each) != each:
                cure = f"remove {self.location}; it is made again"
                raise ModelError("it has changed since it was converted", place=str(path), cure=cure)
            digest.update(name.encode() + b"\0" + bytes.fromhex(each))
        return digest.hexdigest()[:32]

    @contextmanager
    def as_folder(self) -> Iterator[Path]:
        """Yield a temporary folder that holds these files alone, as links."""
        with tempfile.TemporaryDirectory(prefix="roundtrip-") as work:
            folder = Path(work).resolve()
            for name, path in self.paths.items():
                link = folder / name
                link.parent.mkdir(parents=True, exist_ok=True)
                if name in self.documents:
                    link.write_text(json.dumps(self.documents[name]), encoding="utf-8")
                    continue
                try:
                    link.symlink_to(path.absolute())
                except OSError:  # no permission to make links, as on Windows
                    shutil.copyfile(path, link)
            yield folder

    def restore_paths(self, folder: Path, values: dict[str, Any]) -> None:
        """Replace paths in the folder of `as_folder`, which some tokenizers keep, by those of the files themselves."""
        names = {str(folder / name): str(path) for name, path in self.paths.items()} | {str(folder): self.location}
        values |= {key: names[value] for key, value in values.items() if isinstance(value, str) and value in names}

    def bounded_build(self) -> AbstractContextManager[None]:
        """Stop building a model that has far more parts than its files; otherwise memory or time could run out."""
        num_tensors = sum(len(read_dtypes(self.paths[name])) for name in self.weights)
        num_bytes = sum(self.paths[name].stat().st_size for name in self.weights)
        # Of four bits each, which are registered twice.
        packed = 4 if "quantization_config" in self.documents[CONFIG] else 1
        return bounded_build(num_tensors, packed * num_bytes, str(self.paths[CONFIG]))


@contextmanager
def bounded_build(num_tensors: int, num_numbers: int, place: str) -> Iterator[None]:
    """Stop building a model within a block that has far more parts and numbers than its files."""
    # Files may hold several weights in one tensor, and buffers are not in them.
    limits = {"parts": 16 * num_tensors + 10_000, "numbers": 2 * num_numbers + (1 << 26)}
    counts = dict.fromkeys(limits, 0)

    def count(module: nn.Module, name: str, part: Any) -> None:
        if part is None or (not isinstance(part, nn.Module) and part.device.type != "meta"):
            return  # loading replaces parameters, which are created without memory, by those of the files
        counts["parts"] += 1
        counts["numbers"] += 0 if isinstance(part, nn.Module) else part.numel()
        for kind, limit in limits.items():
            if counts[kind] > limit:
                problem = f"it describes a model of more than {limit:,} {kind}; its weights are {num_tensors:,} tensors"
                raise ModelError(f"{problem} of {num_numbers:,} numbers or bytes", place=place, cure=_RESTORE)

    hooks = [
        register(count)
        for register in (
            torch_module.register_module_module_registration_hook,
            torch_module.register_module_parameter_registration_hook,
            torch_module.register_module_buffer_registration_hook,
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def find_files(location: str, revision: str | None, *, weights: bool = True) -> ModelFiles:
    """Return the files of a model in an absolute folder, or of a hub id, which are downloaded; all are checked.

    Args:
        weights: also those with its weights.
    """
    is_local = Path(location).is_absolute()
    folder, commit = Path(location), None
    if not is_local:
        folder = _download(location, revision, [CONFIG, GENERATION, _TOKENIZER, _ADAPTER, _INDEX], [CONFIG])
        revision = commit = folder.name  # so that all files are of one
    _refuse_adapter(folder)
    documents = {
        name: clean(read_json(folder / name, _MAX_SETTINGS_BYTES), folder / name)
        for name, clean in ((CONFIG, _clean_config), (GENERATION, _clean_generation), (_TOKENIZER, _clean_tokenizer))
        if lexists(folder / name)
    }
    names = _tokenizer_names(documents)
    if not is_local:
        _download(location, revision, sorted(names) + ["*.model", "tokenizer.model.*", f"{_TEMPLATES}/*.jinja"])
    found = [name for name in sorted(names | _further_names(folder)) if lexists(folder / name)]
    paths = {name: folder / name for name in (*documents, *found)}
    for path in paths.values():
        require_file(path, _MAX_FILE_BYTES)
    weight_names: tuple[str, ...] = ()
    if weights:
        if not is_local and not (folder / _INDEX).exists():
            has_pickle = any(path.suffix in PICKLES for path in folder.iterdir())
            _download(location, revision, [_WEIGHTS], [] if has_pickle else [_WEIGHTS])
        weight_names = _weight_names(folder)
        if not is_local:
            _download(location, revision, [name.replace("[", "[[]") for name in weight_names], weight_names)
        paths |= {name: folder / name for name in weight_names}
        if _WEIGHTS not in weight_names:
            paths[_INDEX] = folder / _INDEX
        for name in weight_names:
            require_file(folder / name)
    return ModelFiles(location, paths, documents, weight_names, commit)


def read_json(path: Path, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of a model; refuse one that is too large, and numbers that are none."""
    require_file(path, max_bytes)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"no readable JSON: {first_line(error)}", place=str(path), cure=_RESTORE) from error
    if not isinstance(document, dict):
        problem = f"{type(document).__name__} where a JSON object is expected"
        raise ModelError(problem, place=str(path), cure=_RESTORE)
    return document


def _download(name: str, revision: str | None, patterns: list[str], required: Sequence[str] = ()) -> Path:
    """Download files of a hub id, and return its folder; offline, those that are required have to be there already."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = f"model '{name}'" + (f" at revision '{revision}'" if revision else "")
    hub.remove_unreadable_listings(name)
    with hub.hub_requests(what, "model.path"):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        missing = [each for each in required if not lexists(folder / each)]
        if missing and constants.HF_HUB_OFFLINE:
            raise LocalEntryNotFoundError(f"{missing[0]} is not in the cache")
    hub.refuse_damaged(name, folder, patterns)
    return folder


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter, of which transformers would load the base that it names, and a folder without a model."""
    if (folder / _ADAPTER).exists():
        cure = "name its base here, and the folder in adapter.init"
        raise ModelError("this is an adapter, not a model", place=f"model.path ({folder})", cure=cure)
    if not (folder / CONFIG).exists():
        cure = "name the folder of a model, or a .gguf file"
        raise ModelError("it has no config.json", place=f"model.path ({folder})", cure=cure)


def _weight_names(folder: Path) -> tuple[str, ...]:
    """Return the files with weights that transformers would open, by its order of preference."""
    if lexists(folder / _WEIGHTS):
        return (_WEIGHTS,)
    if not (folder / _INDEX).exists():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        problem = f"{pickles[0]} is {PICKLE}" if pickles else f"it has neither {_WEIGHTS} nor {_INDEX}"
        raise ModelError(problem, place=f"model.path ({folder})", cure=CONVERT)
    names = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        problem = "it has no weight_map that names a file for each tensor"
        raise ModelError(problem, place=str(folder / _INDEX), cure=_RESTORE)
    for name in set(names.values()):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            problem, cure = f"{name!r} is no file of this folder", _RESTORE
        elif path.suffix != ".safetensors":
            problem, cure = f"{name!r} is {PICKLE if path.suffix in PICKLES else 'no safetensors file'}", CONVERT
        else:
            continue
        raise ModelError(problem, place=str(folder / _INDEX), cure=cure)
    return tuple(sorted(set(names.values())))


def _tokenizer_names(documents: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the names that the files of a tokenizer may have, by the classes that transformers may choose for it."""
    from transformers import tokenization_utils_base as base
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    names = {base.ADDED_TOKENS_FILE, base.SPECIAL_TOKENS_MAP_FILE, base.FULL_TOKENIZER_FILE, base.CHAT_TEMPLATE_FILE}
    # Vocabularies of which transformers makes a tokenizer.json, whatever the class.
    names |= {"vocab.json", "vocab.txt", "merges.txt", "tekken.json", "tiktoken.model"}
    classes = [documents.get(_TOKENIZER, {}).get("tokenizer_class"), documents[CONFIG].get("tokenizer_class")]
    classes.append(TOKENIZER_MAPPING_NAMES.get(documents[CONFIG]["model_type"]))
    for name in {key.removesuffix("Fast") for key in classes if isinstance(key, str)}:
        for tokenizer_class in (tokenizer_class_from_name(name), tokenizer_class_from_name(f"{name}Fast")):
            names |= set(getattr(tokenizer_class, "vocab_files_names", {}).values())
    return names - {_TOKENIZER, CONFIG, GENERATION}


def _further_names(folder: Path) -> set[str]:
    """Return the names of the files of a tokenizer that transformers finds by listing a folder."""
    models = [*folder.glob("*.model"), *folder.glob("tokenizer.model.*"), *folder.glob(f"{_TEMPLATES}/*.jinja")]
    return {path.relative_to(folder).as_posix() for path in models}


def _clean_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what a config.json says of the model itself; refuse what cannot be one's."""
    from transformers import CONFIG_MAPPING

    model_type, weights = config.get("model_type"), config.pop("transformers_weights", None)
    if not isinstance(model_type, str):
        raise ModelError(f"its model_type is {model_type!r}, not a name", place=str(path), cure=_RESTORE)
    if weights not in {None, _WEIGHTS, _INDEX} if isinstance(weights, str | None) else True:
        problem = f"its weights are in {weights!r}"
        raise ModelError(problem, place=str(path), cure=f"rename that file to {_WEIGHTS} and remove the key")
    if model_type in CONFIG_MAPPING:
        config.pop("auto_map", None)  # a model that transformers supports needs no code of its author
    cleaned: dict[str, Any] = _clean(config, path, _sizes(model_type))
    return cleaned


def _sizes(model_type: str) -> set[str]:
    """Return the settings of a kind of models that are whole numbers, at any depth; others size nothing."""
    from transformers import CONFIG_MAPPING

    def names(value: Any) -> Iterator[str]:
        for key, each in value.items() if isinstance(value, dict) else ():
            yield from names(each) if isinstance(each, dict) else (key,) if type(each) in (int, type(None)) else ()

    if model_type not in CONFIG_MAPPING:
        return set()
    return set(names(CONFIG_MAPPING[model_type]().to_dict()))


def _clean(value: Any, path: Path, sizes: set[str], key: str = "") -> Any:
    """Return a value of a configuration without what is not its to set, at any depth."""
    if isinstance(value, dict):
        if key in {"quantization_config", "compression_config"}:
            return _checked_quantization(value, path)
        if value == {_FLOAT: "NaN"}:
            raise ModelError(f"its {key} is not a number", place=str(path), cure=_RESTORE)
        return {
            name: _clean(each, path, sizes, name)
            for name, each in value.items()
            if name == _FLOAT or not (name.startswith("_") or name in _NOT_THE_MODELS)
        }
    if isinstance(value, list):
        return [_clean(each, path, sizes, key) for each in value]
    if key.endswith("token_id"):
        check_token(value, path, key)
    elif isinstance(value, float) and math.isnan(value):
        raise ModelError(f"its {key} is not a number", place=str(path), cure=_RESTORE)
    elif isinstance(value, int) and not _least(key) <= value <= _largest(key, sizes):
        raise ModelError(f"its {key} is {_short(value)}, which no model has", place=str(path), cure=_RESTORE)
    return value


def _least(key: str) -> int:
    return 0 if key.startswith("num_") else -_MAX_OTHER


def _largest(key: str, sizes: set[str]) -> int:
    """Return the largest number that a setting may have; configurations make lists of their layers before models do."""
    if key.endswith(("layers", "layer")):
        return _MAX_LAYERS
    return _MAX_OTHER if key not in sizes or any(word in key for word in _LARGE) else _MAX_SIZE


def _checked_quantization(value: dict[str, Any], path: Path) -> dict[str, Any]:
    method = value.get("quant_method", _QUANTIZED_BY[0])
    if method not in _QUANTIZED_BY:
        problem = f"its weights are quantized by {method!r}, which requires other programs"
        raise ModelError(problem, place=str(path), cure="use the same model in bfloat16, with model.quantize")
    return value


def check_token(value: Any, path: Path, key: str) -> None:
    """Refuse what is not the number of a token; None and -1 stand for no token."""
    if value is not None and (type(value) is not int or not -1 <= value < _MAX_TOKEN):
        problem = f"its {key} is {_short(value)}, expected the number of a token"
        raise ModelError(problem, place=str(path), cure=_RESTORE)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:40]} ... ({len(text)} characters)"


def _clean_generation(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return numbers and switches of a generation_config.json: names of programs, models and caches are not taken."""
    kept = {}
    for key, value in settings.items():
        for each in value if isinstance(value, list) else [value]:
            if key.endswith("token_id"):
                check_token(each, path, key)
        if key == "transformers_version" or _is_plain(value):
            kept[key] = value
    return kept


def _is_plain(value: Any) -> bool:
    """Return whether a setting is a finite number, a switch, nothing, or a list of such."""
    if isinstance(value, list):
        return all(not isinstance(each, list) and _is_plain(each) for each in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) <= _MAX_OTHER)


def _clean_tokenizer(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a tokenizer_config.json without names of other files, which would be read wherever they are."""
    for key, value in settings.items():
        if key.endswith("token_id"):
            _clean(value, path, set(), key)
    unwanted = {"fast_tokenizer_files", "init_inputs", "name_or_path", "tokenizer_object", "trust_remote_code"}
    return {
        key: value
        for key, value in settings.items()
        if not key.endswith(("_file", "_files")) and not key.startswith("_") and key not in unwanted
    }
