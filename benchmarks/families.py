"""Every decoder-only family of transformers with random weights: load, generate, train, save, load again, export.

    python -m benchmarks.families [--only llama gemma2]

writes benchmarks/results/families-NAME.json and, without `--only`, the table in docs/models.md. A family is left out
where its configuration holds those of other models (images, speech) or has an encoder.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, logging
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks import common
from roundtrip import load_recipe, load_translators
from roundtrip.engine.backend import choose_backend
from roundtrip.engine.train_step import StepSettings, train_step
from roundtrip.engine.translator import Translator
from roundtrip.models.direction_model import frozen_hashes
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import RoundtripError, first_line
from roundtrip.tokens.batching import TokenDataset, collate

# The result that the table in docs shows.
KEPT = "cpu"
TABLE = Path(__file__).parents[1] / "docs" / "models.md"
NAME = "en-es"
PAIRS = [("I see a cat.", "Veo un gato."), ("yes", "sí"), ("The red house is far away.", "La casa roja está lejos.")]
_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
_HEAD = """\
Any decoder-only model that transformers loads can be a base. What a model supports is found by trying it when it is
loaded, not by a list of names, and a run says what is not as usual:

- **Attention.** Models are loaded with sdpa where transformers has it for them, else with eager.
- **Engine.** A few tokens are decoded by our own loop and compared with passes without cache and padding. Where they
  differ, as with recurrent states, `generate` of transformers is used: with all prompts, or with prompts of one length
  at a time where a model reads padding, or without a cache.
- **Rows in training.** Packed one behind the other where packed rows do not change each other, else padded.
- **Adapters.** `targets = "all-linear"` takes linear layers. Stacked experts and their routers are none, and PEFT
  refuses some layers of recurrent blocks: these stay as they are. `method = "full"` trains everything.

`python -m benchmarks.families` wrote this page. It builds each family of transformers with random weights, loads it,
generates greedily by both engines, trains two steps with LoRA and with all weights, saves, loads again, and loads what
was exported with transformers and PEFT alone.
"""
# Sizes by all the names that configurations have for them; those that a configuration does not have are left out.
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "word_embed_proj_dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    "num_key_value_heads": 2,
    "head_dim": 16,
    "kv_channels": 16,
    "rotary_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_shared_experts": 1,
    "initializer_range": 0.1,
    "mamba_d_ssm": 128,
    "mamba_head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "linear_key_head_dim", "linear_value_head_dim"), 16),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a family needs besides, or must not have (None: its own default).
_MLA = {"num_key_value_heads": 4, "head_dim": None}
_FOUR, _HEAD_DIM = {"num_hidden_layers": 4}, {"head_dim": 16}
_GEMMA4 = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 260, "global_head_dim": 16,
           "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "minicpm3", "youtu"), _MLA),
    **dict.fromkeys(("glm4_moe_lite", "sarvam_mla"), _MLA),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEAD_DIM),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text", "lfm3"), _FOUR),
    "bailing_hybrid": _FOUR | {"layer_group_size": 4, "num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "head_dim": None, "num_key_value_heads": 4},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 16},
    "falcon": {"head_dim": None},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
                     "vocab_size_per_layer_input": 260, "intermediate_size": [128] * 4, "laurel_rank": 8,
                     "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "inkling2_text": {"unpadded_vocab_size": 260},
    "inkling2_loop_text": {"unpadded_vocab_size": 260, "num_hidden_layers": 4, "loop_layer_index_start": 1,
                           "loop_layer_index_end": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 8, "num_layers": 1, "num_hidden_layers": None},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16], "is_decoder": True},
    "xlstm": {"v_head_dim": None},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", default=None, help="families by their model_type")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for family in arguments.only or families():
        start = time.perf_counter()
        rows.append(try_family(family) | {"seconds": round(time.perf_counter() - start, 1)})
        Console().print(rows[-1], highlight=False)
    document = common.provenance("families") | {"rows": rows}
    common.finish(document, common.result_path("families", arguments.name), show)
    if arguments.only is None:
        TABLE.write_text(page(document), encoding="utf-8")


def families() -> list[str]:
    """Return the decoder-only families: no encoder, and no configuration inside of the configuration."""
    names = []
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config_class = CONFIG_MAPPING[family]
        if not getattr(config_class, "sub_configs", None) and not config_class().is_encoder_decoder:
            names.append(family)
    return names


def small_model(family: str) -> Any:
    """Return a small causal LM of a family, float32, with random weights that depend on nothing but the family."""
    config_class = CONFIG_MAPPING[family]
    settings = {"vocab_size": len(tokenizer())} | _SMALL | _OWN.get(family, {})
    default = config_class().to_dict()
    present = {name for name in settings if default.get(name) is not None} | set(_OWN.get(family, {}))
    config = config_class(**{name: value for name, value in settings.items() if name in present and value is not None})
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes."""
    pieces = [*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, begin, end, unknown = _SPECIALS
    names = {"pad_token": pad, "bos_token": begin, "eos_token": end, "unk_token": unknown}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def try_family(family: str) -> dict[str, Any]:
    """Return what works with a family, and by which path; `fault` says what does not, None where all does."""
    row: dict[str, Any] = {"family": family, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family], "fault": None}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        folder, step = Path(name), "build"
        try:
            model = small_model(family)
            model.save_pretrained(folder / "base")
            tokenizer().save_pretrained(folder / "base")
            step = "load"
            translator = _load(folder / "base", "lora")
            row |= {"attention": translator.base.attention, "notes": translator.notes(Generate())}
            step = "generate"
            row |= _generate(translator)
            for method in ("lora", "full"):
                step = method
                row[method] = _train(folder, method)
        except Exception as error:  # whatever fails is the result
            problem = error.problem if isinstance(error, RoundtripError) else f"{type(error).__name__}: {error}"
            row["fault"] = f"{step}: {first_line(ValueError(problem))}"
    return row


def _load(folder: Path, method: str) -> Translator:
    changes = (f"model.path={folder}", "model.dtype=float32", "model.device=cpu", f"adapter.method={method}")
    rank = () if method == "full" else ("adapter.rank=2",)
    return load_translators(load_recipe("quickstart", [*changes, *rank, "adapter.dropout=0.0"]))[NAME]


def _generate(translator: Translator) -> dict[str, Any]:
    """Return which engine generates; ours has to generate what transformers does, token by token."""
    native = Generate(temperature=0.0, max_length_ratio=0.2)
    library = native.model_copy(update={"engine": "transformers"})
    sources = [source for source, _ in PAIRS]
    ids = [translator.translate(sources, settings).hypotheses.lists() for settings in (native, library)]
    if ids[0] != ids[1]:
        raise ValueError("our own decoding loop does not generate what transformers does")
    with translator.direction_model.generating() as model:
        backend = choose_backend(model, native, translator.base.pad_id)
    engine = "native" if backend.native else "transformers"
    return {"engine": engine, "mixes_lengths": backend.mixes_lengths, "use_cache": backend.use_cache}


def _train(folder: Path, method: str) -> str:
    """Train two steps, save, load again, export; return how rows are computed."""
    translator = _load(folder / "base", method)
    model, dataset = translator.direction_model, TokenDataset.of(translator.template.rows(PAIRS))
    before, hashes = _logits(translator, dataset), frozen_hashes({NAME: model})
    settings = load_recipe("quickstart", ["train.lr=0.01"]).recipe.train
    optimizer = Optimizer(model.parameters(), settings, num_steps=10)
    with model.training() as packed:
        step = StepSettings(translator.base.pad_id, max_tokens_per_microbatch=512, packed=packed)
        for seed in (1, 2):
            result = train_step(model.model, optimizer, dataset, range(len(PAIRS)), step, seed)
            if result.nonfinite or not result.grad_norm > 0:
                raise ValueError(f"loss {result.loss}, gradient norm {result.grad_norm}")
    trained = _logits(translator, dataset)
    if torch.equal(before, trained):
        raise ValueError("two steps changed nothing")
    if frozen_hashes({NAME: model}) != hashes:
        raise ValueError("training changed the frozen base")
    _generate(translator)
    saved = folder / method
    model.export(saved)
    again = _load(folder / "base", method)
    again.direction_model.restore(saved)
    if not torch.equal(_logits(again, dataset), trained):
        raise ValueError("loaded again, its logits differ")
    alone = AutoModelForCausalLM.from_pretrained(saved if method == "full" else folder / "base", dtype=torch.float32)
    alone = alone if method == "full" else PeftModel.from_pretrained(alone, saved)
    difference = float((_forward(alone.eval(), dataset) - trained).abs().max() / trained.abs().max())
    if difference > 1e-3:
        raise ValueError(f"what is exported has other logits, by {difference:.1%}")
    return "packed" if packed else "padded"


def _logits(translator: Translator, dataset: TokenDataset) -> torch.Tensor:
    with translator.direction_model.generating() as model:
        return _forward(model, dataset)


@torch.no_grad()
def _forward(model: Any, dataset: TokenDataset) -> torch.Tensor:
    # One row: without padding, and without an attention of ours.
    ids_BT = collate(dataset, [0], 0).ids_BT
    logits: torch.Tensor = model(input_ids=ids_BT).logits
    return logits.clone()


def show(document: Any, console: Console) -> None:
    columns = ("family", "attention", "engine", "LoRA", "full", "what does not work")
    keys = ("family", "attention", "engine", "lora", "full", "fault")
    rows = [[str(row.get(key) or "") for key in keys] for row in document["rows"]]
    common.print_table(console, "families", columns, rows, left=6)


def kept() -> Any:
    """Return the kept result."""
    return json.loads(common.result_path("families", KEPT).read_text(encoding="utf-8"))


def page(document: Any) -> str:
    """Return docs/models.md."""
    rows = document["rows"]
    built = [row for row in rows if not (row["fault"] or "").startswith("build: ")]
    works = [row for row in built if row["fault"] is None]
    lines = [
        f"# Models\n\n{_HEAD}",
        f"With transformers {document['versions']['transformers']}, {len(works)} of the {len(built)} families that can "
        f"be built small work. Not built: {', '.join(sorted(row['family'] for row in rows if row not in built))}.\n",
        "| family | attention | engine | rows in training | notes |\n|---|---|---|---|---|",
        *(_line(row) for row in sorted(works, key=lambda row: str(row["family"]))),
        "\n## What does not work\n\n| family | why |\n|---|---|",
        *(f"| `{row['family']}` | {_cell(row['fault'])} |" for row in built if row not in works),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    engine = "ours" if row["engine"] == "native" else "transformers"
    notes = [note for note in row["notes"] if not note.startswith("attention")]
    return f"| `{row['family']}` | {row['attention']} | {engine} | {row['lora']} | {_cell('; '.join(notes))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
