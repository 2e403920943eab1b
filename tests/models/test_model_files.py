"""The files of a model: found, hashed, checked, and bounded before anything is built of them."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import configuration_utils, modeling_utils
from transformers.integrations import hub_kernels

from roundtrip import load_recipe, load_translators
from roundtrip.models import base_model, model_files
from roundtrip.models.base_model import LoadedModel
from roundtrip.models.model_files import find_files
from roundtrip.recipe.schema import Model
from roundtrip.runtime.errors import ModelError, RoundtripError, SourceError
from tests.conftest import WriteRecipe, small_tokenizer
from tests.tools import attack_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDS_BT = torch.tensor([[5, 6, 7]])


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the small model, with its weights in two files of a folder that an index names."""
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "weights").mkdir()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[:9], names[9:])):
        file = f"weights/part-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, copy / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return copy


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same model as the snapshot of `org/model` in a cache of the hub, without a network."""
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(repository / "blobs" / str(number))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def load(folder: Path | str, tmp_path: Path) -> LoadedModel:
    return base_model.load(Model(path=str(folder), dtype="float32", device="cpu"), tmp_path)


@torch.no_grad()
def logits(loaded: LoadedModel) -> torch.Tensor:
    result: torch.Tensor = loaded.model(input_ids=IDS_BT).logits
    return result


# The hash


def test_the_hash_covers_every_file_that_is_read_and_no_other(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "other.jinja").write_text("{{ messages }}")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (folder / name).write_text("{}")
    files = find_files(str(folder), None)
    read = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files.paths) == read and len(read) >= 11, "no file of the folder is left out"
    before = files.digest()
    for name in read:
        content = (folder / name).read_bytes()
        # Spaces leave JSON and templates readable, and the hash is of what is published.
        changed = content[:-1] + bytes([content[-1] ^ 1]) if name.endswith(".safetensors") else content + b" "
        (folder / name).write_bytes(changed)
        assert find_files(str(folder), None).digest() != before, name
        (folder / name).write_bytes(content)
    for name in ("README.md", "optimizer.pt", "model.onnx", "weights/more.safetensors", "original/params.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("anything")
    assert find_files(str(folder), None).digest() == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "weights/part-1.safetensors"])
def test_offline_a_hub_id_without_all_files_says_what_to_do(hub: Path, tmp_path: Path, name: str) -> None:
    if name == "model.safetensors":
        (hub / "model.safetensors.index.json").rename(hub / name)
    (hub / name).unlink()
    problem = "'org/{}'.* not completely, in the cache of this machine, and the hub is not asked"
    with pytest.raises(SourceError, match=problem.format("model")) as caught:
        load("org/model", tmp_path)
    assert caught.value.cure == "run once with network access"
    with pytest.raises(SourceError, match=problem.format("other")):
        load("org/other", tmp_path)


def test_a_hub_id_has_the_files_and_the_hash_of_its_snapshot(hub: Path, folder: Path, tmp_path: Path) -> None:
    loaded = load("org/model", tmp_path)
    assert loaded.digest == load(folder, tmp_path).digest
    assert loaded.location == loaded.model.config.name_or_path == loaded.tokenizer.name_or_path == "org/model"
    assert loaded.commit == loaded.model.config._commit_hash == COMMIT, "which an export names"
    (hub / "README.md").write_text("a file that another program has fetched")
    assert find_files("org/model", None).digest() == loaded.digest
    before = logits(loaded)
    loaded.model.requires_grad_(False).zero_grad()
    base_model.reload_weights(Model(path="org/model", dtype="float32", device="cpu"), loaded)
    assert torch.equal(logits(loaded), before)
    change(hub / "config.json", rope_parameters={"rope_theta": 20000.0, "rope_type": "default"})
    with pytest.raises(ModelError, match="its files have changed since the run began"):
        base_model.reload_weights(Model(path="org/model", dtype="float32", device="cpu"), loaded)


def test_a_hub_id_is_refused_for_what_its_index_names(hub: Path, tmp_path: Path) -> None:
    change(hub / "model.safetensors.index.json", weight_map={"model.norm.weight": "weights.bin"})
    with pytest.raises(ModelError, match="weights.bin' is a pickle"):
        load("org/model", tmp_path)


# What is opened


def test_transformers_reads_a_folder_with_these_files_alone(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    files = find_files(str(folder), None)
    with files.as_folder() as work:
        found = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
        assert found == set(files.paths)
        assert (work / "weights/part-0.safetensors").samefile(folder / "weights/part-0.safetensors")
    assert not work.exists()


@pytest.mark.parametrize(
    "weight_map",
    [None, [], {}, {"a": 3}, {"a": ["x.safetensors"]}]
    + [
        {"a": name} for name in ("x.bin", "x.safetensors.pt", "../copy/x.safetensors", "/x.safetensors", "a\\..\\x", "")
    ],
)
def test_an_index_that_names_anything_but_safetensors_inside_is_refused(
    folder: Path, tmp_path: Path, weight_map: Any
) -> None:
    (folder / "x.safetensors").write_bytes((folder / "weights/part-0.safetensors").read_bytes())
    change(folder / "model.safetensors.index.json", weight_map=weight_map)
    for read in (load, lambda *arguments: base_model.load_tokenizer(Model(path=str(folder)), tmp_path)):
        with pytest.raises(ModelError, match="is a pickle|no safetensors file|no file of this folder|no weight_map"):
            read(folder, tmp_path)


def test_a_file_larger_than_its_kind_is_not_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_MAX_SETTINGS_BYTES", 1000)
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" " * 1000)
    with pytest.raises(ModelError, match="more than the 1,000 that such a file may have"):
        load(folder, tmp_path)


# Configuration


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "org/kernel"},
        {"attn_implementation": "org/kernel", "_attn_implementation_internal": "org/kernel"},
        {"_experts_implementation": "org/kernel", "fusion_config": {"x": "org/kernel"}},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "org/evil--evil.Model"}},
        {"torch_dtype": "evil", "dtype": {"": "int8"}, "return_dict": False, "output_attentions": True},
        {"_name_or_path": "org/other", "_commit_hash": "x", "configuration_files": ["config.99.0.0.json"]},
        {"transformers_weights": "model.safetensors.index.json"},
    ],
)
def test_a_configuration_does_not_choose_how_a_model_is_computed(folder: Path, tmp_path: Path, values: Any) -> None:
    expected = load(folder, tmp_path)
    change(folder / "config.json", **values)
    loaded = load(folder, tmp_path)
    assert loaded.attention == "sdpa" and loaded.model.config.to_dict() == expected.model.config.to_dict()
    assert torch.equal(logits(loaded), logits(expected))


# Of the settings that transformers reads of every model, those that say which model it is.
OF_THE_MODEL = {
    *(
        "architectures",
        "attention_dropout",
        "init_std",
        "initializer_factor",
        "initializer_range",
        "layer_types",
        "model_type",
    ),
    *("mtp_layer_types", "per_layer_config", "sliding_window", "tie_word_embeddings"),
}


def settings_read(module: ModuleType) -> Iterator[str]:
    """Yield the settings that the code of a module reads of a configuration."""
    tree = ast.parse(inspect.getsource(module))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in called and is_config(node.value):
            yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr"}:
            holder, name = node.args[:2]
            if is_config(holder) and isinstance(name, ast.Constant):
                yield str(name.value)


def is_config(node: ast.AST) -> bool:
    return "config" in (getattr(node, "id", None), getattr(node, "attr", None))


def test_every_setting_that_transformers_reads_of_any_model_is_the_models_or_is_removed(tmp_path: Path) -> None:
    """A version that reads another one fails here, so that somebody decides what a stranger may set."""
    modules = (configuration_utils, modeling_utils, hub_kernels)
    read = {name for module in modules for name in settings_read(module) if not name.endswith("token_id")}
    assert {"_attn_implementation", "transformers_weights", "dtype"} <= read
    read -= {"__class__", "transformers_weights"}
    cleaned = model_files._clean_config(dict.fromkeys(read, "x") | {"model_type": "llama"}, tmp_path)
    assert set(cleaned) == OF_THE_MODEL


def test_implementations_are_removed_at_any_depth(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "text_config": {"_attn_implementation": "a/b", "x": [{"attn_implementation": "a"}]},
    }
    cleaned = model_files._clean_config(config, tmp_path)
    assert cleaned == {"model_type": "llama", "text_config": {"x": [{}]}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized by 'gptq'"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantized by 'mxfp4'"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantized by 'fp8'"),
        ({"transformers_weights": "other.safetensors"}, "its weights are in 'other.safetensors'"),
        ({"transformers_weights": ["x"]}, "its weights are in"),
        ({"model_type": None}, "its model_type is None"),
        ({"model_type": "evil"}, "cannot be loaded"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, "which is not executed"),
        ({"rms_norm_eps": float("nan")}, "its rms_norm_eps is not a number"),
        ({"rms_norm_eps": {"__float__": "NaN"}}, "its rms_norm_eps is not a number"),
    ],
)
def test_a_configuration_that_needs_other_programs_is_refused(
    folder: Path, tmp_path: Path, values: Any, message: str
) -> None:
    change(folder / "config.json", **values)
    with pytest.raises(RoundtripError, match=message):
        load(folder, tmp_path)


def test_settings_of_generation_name_no_programs(folder: Path, tmp_path: Path) -> None:
    change(folder / "generation_config.json", temperature=0.5, custom_generate="org/x", assistant_model={"a": "b"})
    change(folder / "generation_config.json", cache_implementation="x", compile_config={"backend": "x"})
    settings = load(folder, tmp_path).model.generation_config
    assert settings.temperature == 0.5 and settings.cache_implementation is None
    assert not hasattr(settings, "custom_generate") and not settings.to_diff_dict().get("compile_config")


def test_a_tokenizer_names_no_files_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    other = str(tmp_path / "other.json")
    change(folder / "tokenizer_config.json", tokenizer_file=other, vocab_file=other, fast_tokenizer_files=["../x.json"])
    assert len(load(folder, tmp_path).tokenizer) == len(small_tokenizer())


def test_a_token_far_beyond_the_others_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["model"]["vocab"]["<|im_start|>"] = 1_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RoundtripError, match="has token 1000000000, and only"):
        base_model.load_tokenizer(Model(path=str(folder)), tmp_path)


# Bounds


@pytest.mark.parametrize(
    "values",
    [
        {"pretraining_tokens": 2 * 10**12, "num_parameters": 7 * 10**9, "timestamp": 1_700_000_000, "init_seed": 2**31},
        {"max_seq_len": 2**25, "n_ctx": 2**25, "layer_id": 20_000},
        {"task_specific_params": {"translation": {"num_beams": -1}}},
    ],
)
def test_numbers_that_size_nothing_are_accepted(folder: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    """As published configurations have them."""
    change(folder / "config.json", **values)
    assert load(folder, tmp_path).num_embeddings


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_of_many_megabytes_are_refused_at_once(folder: Path, tmp_path: Path, name: str) -> None:
    change(folder / name, of_nothing=[[]] * 2_000_000)
    started = time.monotonic()
    with pytest.raises(ModelError, match=f"{name}: it has .* bytes, more than"):
        load(folder, tmp_path)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "values",
    [
        *({"num_hidden_layers": number} for number in (10**4, 10**6, 10**9, 10**30)),
        *({name: 10**7} for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")),
        {"vocab_size": 10**12},
        {"model_type": "mixtral", "num_local_experts": 10**7},
        {"model_type": "mamba", "num_hidden_layers": 9_999, "state_size": 10**7},
        {"model_type": "gpt2", "n_layer": 9_999, "n_positions": 10**6},
        {"model_type": "gemma3n_text", "num_hidden_layers": 10**8},
        {"model_type": "bloom", "n_head": 10**12},
        *({"hidden_size": value} for value in (-1, 0, "48", None, [48], {"a": 48}, True, 48.5, 1e400)),
        *({"num_hidden_layers": value} for value in (-1, "2", None, [2], 2.5)),
    ],
)
def test_a_configuration_beyond_its_weights_is_refused_at_once(folder: Path, tmp_path: Path, values: Any) -> None:
    change(folder / "config.json", **values)
    started = time.monotonic()
    with pytest.raises(RoundtripError):
        load(folder, tmp_path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ["2", 2.0, -2, 10**30, [[2]], {"a": 2}, True, [2, "x"], [None, True]])
def test_a_token_that_is_no_number_is_refused(folder: Path, tmp_path: Path, file: str, name: str, value: Any) -> None:
    change(folder / file, **{name: value})
    spec = Model(path=str(folder), dtype="float32", device="cpu")
    reading: list[Callable[[], Any]] = [
        lambda: base_model.load(spec, tmp_path),
        lambda: base_model.load_tokenizer(spec, tmp_path),
    ]
    for read in reading:
        with pytest.raises(RoundtripError, match=name.removesuffix("_id")):
            read()


def test_end_tokens_without_an_embedding_are_left_out_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / "generation_config.json", eos_token_id=[2, 100_000])
    assert load(folder, tmp_path).stop_ids == (2,)
    assert base_model.load_tokenizer(Model(path=str(folder)), tmp_path)[1] == (2,)
    assert caplog.text.count("end tokens [100000] have no embedding") == 2


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(
    folder: Path, tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    file = folder / "weights/part-1.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    load(folder, tmp_path)
    tensors["model.norm.weight"][7] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of the 48 numbers of 'model.norm.weight' are not finite") as caught:
        load(folder, tmp_path)
    assert caught.value.place == str(folder)


def test_trained_weights_that_are_not_finite_are_refused(folder: Path, write_recipe: WriteRecipe) -> None:
    recipe = write_recipe(("rank = 4\ndropout = 0.1", 'method = "full"'))
    model = load_translators(load_recipe(str(recipe)))["en-es"].direction_model
    model.restore(folder)
    file = folder / "weights/part-0.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="are not finite"):
        model.restore(folder)


def test_damaged_safetensors_are_named(folder: Path, tmp_path: Path) -> None:
    file = folder / "weights/part-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match="no readable safetensors") as caught:
        load(folder, tmp_path)
    assert caught.value.place == str(file)


# Everything at once


def test_hostile_folders_are_loaded_or_refused(tmp_path: Path) -> None:
    result = attack_models.attack_models(3, 70, tmp_path)
    assert not result["faults"], result
    assert min(result["accepted"], result["refused"]) > 3
