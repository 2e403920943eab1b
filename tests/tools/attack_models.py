"""Hostile model folders: each is loaded and used, or refused with a `RoundtripError`, in limited time and memory."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from roundtrip import load_recipe, load_translators
from roundtrip.engine.model_checks import check_models
from roundtrip.recipe.schema import Generate
from tests.tools.attack_limits import attack

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
# Values as JSON text, since some are no values of Python.
VALUES = (
    *("1000000000", "1000000000000", "-1", "0", "1", "7", "9223372036854775808", f"1{'0' * 400}", f"1{'0' * 5000}"),
    *("NaN", "Infinity", "-Infinity", "1e400", "1.5", "1e-300", "true", "false", "null", '""', '"x"', '"\\u0000"'),
    *("[]", "{}", "[[1]]", '{"a": {"b": []}}', '["x", null]', "[1, 2, 3]", '"\\ud800"', '"../../../etc/passwd"'),
    *('"float32"', '"int8"', '"llama"', '"t5"', '"gpt2"', '"a/b"', '"flash_attention_2"', f'"{"x" * 100000}"'),
)
# Keys that a configuration of another model, or of a program, might have.
KEYS = (
    *("_attn_implementation", "attn_implementation", "_experts_implementation", "quantization_config", "auto_map"),
    *("transformers_weights", "_name_or_path", "fusion_config", "dtype", "torch_dtype", "head_dim", "rope_scaling"),
    *("rope_parameters", "text_config", "layer_types", "is_encoder_decoder", "add_cross_attention", "pruned_heads"),
    *("return_dict", "output_attentions", "use_cache", "tie_word_embeddings", "sliding_window", "tokenizer_class"),
    *("custom_generate", "assistant_model", "compile_config", "cache_implementation", "vocab_file", "tokenizer_file"),
    *("fast_tokenizer_files", "init_inputs", "model_input_names", "eos_token_id", "bos_token_id", "pad_token_id"),
    *("eos_token", "pad_token", "added_tokens_decoder", "extra_special_tokens", "chat_template", "padding_side"),
    *("partial_rotary_factor", "attention_bias", "attention_chunk_size", "architectures", "chunk_size_feed_forward"),
    *("num_labels", "id2label", "model_max_length", "split_special_tokens", "clean_up_tokenization_spaces", "backend"),
)


class Touch:
    """A pickle of it writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def hostile_model_folders(base: Path, target: Path, seed: int, number: int) -> Iterator[tuple[str, Path]]:
    """Yield names and folders of changed copies of a model, each of which exists until the next one is asked for.

    A file `executed` in `target` shows that code of one has run.

    Args:
        base: the folder of a model with `model.safetensors` and a fast tokenizer.
        target: an existing folder to make copies in.
    """
    attacks = _fixed_attacks(target / "executed")
    chance = random.Random(seed)
    for index in range(number):
        folder = target / f"model-{index}"
        shutil.copytree(base, folder)
        if index < len(attacks):
            name, attack = attacks[index]
            attack(folder)
        else:
            name = chance.choice((_change_json, _change_json, _change_bytes, _change_header))(folder, chance)
        try:
            yield name, folder
        finally:
            shutil.rmtree(folder)


def _change_json(folder: Path, chance: random.Random) -> str:
    """Change or add one value at any depth."""
    path = folder / chance.choice(JSON_FILES)
    document = json.loads(path.read_text(encoding="utf-8"))
    node, names = document, [path.name]
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if isinstance(node, dict) and (node is document or not keys) and chance.random() < 0.4:
            keys = list(KEYS)
        key = chance.choice(keys) if keys else "x"
        names.append(str(key))
        inner = node.get(key) if isinstance(node, dict) else node[key] if keys else None
        if isinstance(inner, dict | list) and inner and chance.random() < 0.8:
            node = inner
            continue
        break
    value, mark = chance.choice(VALUES), "a mark that no model has"
    if isinstance(node, list):
        node[:] = [*node, mark]
    else:
        node[key] = mark
    path.write_text(json.dumps(document).replace(f'"{mark}"', value), encoding="utf-8")
    return f"{'.'.join(names)} = {value[:60]}"


def _change_bytes(folder: Path, chance: random.Random) -> str:
    """Change, cut or repeat bytes of one file."""
    path = chance.choice(sorted(item for item in folder.iterdir() if item.is_file()))
    content = bytearray(path.read_bytes())
    kind, start = chance.choice(("change", "cut", "repeat", "insert")), chance.randrange(len(content))
    if kind == "change":
        content[start] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[start:]
    elif kind == "repeat":
        content[start:start] = content[start : start + 1000]
    else:
        content[start:start] = chance.randbytes(5)
    path.write_bytes(content)
    return f"{path.name}: {kind} at {start}"


def _change_header(folder: Path, chance: random.Random) -> str:
    """Let the header of the weights say something else of one tensor, or have another length."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name, key = chance.choice(sorted(set(header) - {"__metadata__"})), chance.choice(("dtype", "shape", "data_offsets"))
    value = chance.choice(
        [*VALUES, '"F64"', '"F4"', '"BF16"', '"F8_E4M3"', "[1000000000000, 1000000000000]", "[-1, 4]"]
    )
    header[name][key] = "mark"
    text = json.dumps(header).replace('"mark"', value).encode("utf-8", "surrogatepass")
    length = len(text) if chance.random() < 0.8 else chance.choice((0, 1 << 63, 1 << 40, len(text) // 2, len(content)))
    path.write_bytes(length.to_bytes(8, "little") + text + content[8 + size :])
    return f"header: {name}.{key} = {value[:60]}, length {length}"


Attack = tuple[str, Callable[[Path], object]]


def _fixed_attacks(mark: Path) -> list[Attack]:
    """Return attacks on what a folder holds; loading a pickle or a program of one writes the file `mark`."""

    def index(name: str) -> Callable[[Path], object]:
        def attack(folder: Path) -> None:
            names = list(load_file(folder / "model.safetensors"))
            (folder / "weights.bin").write_bytes(pickle.dumps(Touch(mark)))
            (folder / "model.safetensors").rename(folder / "other.safetensors")
            text = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)})
            (folder / "model.safetensors.index.json").write_text(text)

        return attack

    def numbers(value: float) -> Callable[[Path], object]:
        def attack(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors")
            tensors["model.norm.weight"][3] = value
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        return attack

    def program(folder: Path) -> None:
        (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
        for name in ("__init__", "modeling_llama", "custom_generate/generate"):
            (folder / f"{name}.py").parent.mkdir(exist_ok=True)
            shutil.copy(folder / "evil.py", folder / f"{name}.py")

    def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
        def attack(folder: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            make(folder / name)

        return attack

    attacks: list[Attack] = [
        *((f"an index names {name!r}", index(name)) for name in ("weights.bin", "../x.safetensors", "/dev/zero", "")),
        *((f"an index names {name!r}", index(name)) for name in ("other.safetensors", "none.safetensors", "a\0b")),
        *((f"a weight is {value}", numbers(value)) for value in (float("nan"), float("inf"), -float("inf"))),
        ("programs", program),
        ("distributed checkpoint", lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(Touch(mark)))),
        ("adapter", lambda folder: (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')),
    ]
    for name in (*JSON_FILES, "model.safetensors", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"):
        attacks += [
            (f"{name} is a FIFO", replaced(name, os.mkfifo)),
            (f"{name} is /dev/zero", replaced(name, lambda path: path.symlink_to("/dev/zero"))),
            (f"{name} is a folder", replaced(name, lambda path: path.mkdir())),
            (f"{name} links to itself", replaced(name, lambda path: path.symlink_to(path))),
            (f"{name} has 2 GB", replaced(name, lambda path: path.touch() or os.truncate(path, 2 << 30))),
            (f"{name} is nested", replaced(name, lambda path: path.write_text('{"a":' * 100_000))),
            (f"{name} has lists", replaced(name, lambda path: path.write_text(f"[{'[],' * 500_000}[]]"))),
        ]
    return attacks


def use(folder: Path, work: Path) -> None:
    """Check, load and use a model as a run does: translate a line, and read its rows in training."""
    changes = [f"model.path={json.dumps(str(folder))}", "model.device=cpu", "model.dtype=float32", "adapter.rank=2"]
    recipe = load_recipe("quickstart", changes)
    check_models(recipe.recipe, work)
    translator = load_translators(recipe)["en-es"]
    settings = Generate(temperature=0.0, max_length_ratio=0.2)
    translator.notes(settings)
    translator.translate(["I see the red house here."], settings)
    with translator.direction_model.training():
        pass


def attack_models(seed: int, number: int, work: Path) -> dict[str, Any]:
    """Load and use hostile model folders, and return counts by outcome; see `attack_limits.attack`."""
    from tests.conftest import save_model

    save_model(work / "base")
    use(work / "base", work)  # so that libraries are loaded
    torch.set_num_threads(1)

    def inputs() -> Iterator[tuple[str, Callable[[], object]]]:
        for name, folder in hostile_model_folders(work / "base", work, seed, number):
            yield name, partial(use_without_programs, folder, work)

    return attack(inputs())


def use_without_programs(folder: Path, work: Path) -> None:
    """Use a model, whose programs would leave a file in the folder of work."""
    try:
        use(folder, work)
    finally:
        assert not (work / "executed").exists(), "code of the folder was executed"
