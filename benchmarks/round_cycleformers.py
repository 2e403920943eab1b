"""One pass of CycleFormers over monolingual lines, by its own interpreter, for `benchmarks.round --prior-art PYTHON`.

It needs transformers 4.46, so it cannot live beside ours. An environment that it runs in:

    python3 -m venv elsewhere
    elsewhere/bin/pip install torch==2.13.0 transformers==4.46.0 peft==0.13.2 accelerate==1.1.1 datasets==3.6.0
    git clone https://github.com/wrmthorne/cycleformers elsewhere/source   # commit fad28de was measured
    echo "$PWD/elsewhere/source/src" > elsewhere/lib/python3.11/site-packages/source.pth

Its own trainer, one base with two LoRA adapters (`use_macct`), the library's settings. Changed from here, without
touching its source: the number of tokens to generate (30 are fixed in it), the rotary base, which 4.46 does not find in
a configuration written by 5.x and would silently take for 10,000, and dropout of the adapters, which it leaves on while
generating. It has no parallel pairs, so its round is the smaller one. Prints figures for `benchmarks.round`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS = {"fast": [], "slow": ["--slow"]}


def run(python: str, model: str, lines: Mapping[str, Sequence[str]], **settings: Any) -> dict[str, Any]:
    """Run both of its variants, each in a process of its own, and return their figures.

    Args:
        python: an interpreter as described above.
        model: folder of the base.
        lines: by language, the first one's first; as many of each.
        settings: batch_size, max_new_tokens, rank, alpha, lr, dtype.
    """
    # Here, since the other interpreter runs this file too and has no rich.
    from benchmarks.common import in_own_process

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        asked.write_text(json.dumps({"lines": list(lines.values()), "model": model, **settings}), encoding="utf-8")
        for variant, flags in VARIANTS.items():
            results[variant] = in_own_process([python, str(Path(__file__).resolve()), str(asked), *flags])
    return results


def _load(folder: str, dtype: str) -> tuple[Any, Any]:
    """Return the base and its tokenizer from files of a newer transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.from_pretrained(folder)
    written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config.rope_theta = (written.get("rope_parameters") or {}).get("rope_theta", config.rope_theta)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=getattr(torch, dtype))
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def main() -> None:
    """Train with the other interpreter, and print one line of JSON."""
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help"}:
        sys.exit(__doc__)
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # The first pass is warm-up; each has new models and adapters.
    results = [_train(asked, slow="--slow" in sys.argv) for _ in range(2)]
    sys.stdout.write(json.dumps(results[-1]) + "\n")


def _train(asked: Mapping[str, Any], *, slow: bool) -> dict[str, Any]:
    from cycleformers import CycleTrainer, CycleTrainingArguments
    from cycleformers.cycles import _default_prepare_cycle_inputs
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed

    set_seed(0)
    model, tokenizer = _load(asked["model"], asked["dtype"])
    config = LoraConfig(
        task_type="CAUSAL_LM", r=asked["rank"], lora_alpha=asked["alpha"], lora_dropout=0.0, target_modules=LINEAR
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = CycleTrainer(
            args=CycleTrainingArguments(
                output_dir=folder,
                use_macct=True,
                num_train_epochs=1,
                learning_rate=asked["lr"],
                per_device_train_batch_size=asked["batch_size"],
                gradient_accumulation_steps=1,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            models=model,
            tokenizers=tokenizer,
            train_dataset_A=Dataset.from_dict({"text": asked["lines"][0]}),
            train_dataset_B=Dataset.from_dict({"text": asked["lines"][1]}),
            peft_configs=config,
        )
        if slow:
            trainer.set_cycle_inputs_fn(_default_prepare_cycle_inputs)
        whole: Any = trainer.model_A
        generate, counts = whole.generate, {"rows": 0, "tokens": 0, "seconds": 0.0}

        def capped(**given: Any) -> Any:
            start = time.perf_counter()
            ids = generate(**given | {"max_new_tokens": asked["max_new_tokens"]})
            counts["seconds"] += time.perf_counter() - start
            new = ids[:, given["input_ids"].shape[1] :]
            counts["rows"] += len(new)
            counts["tokens"] += new.numel()
            return ids

        whole.generate = capped
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    taken = [
        max((int(state["step"]) for state in optimizer.state_dict()["state"].values()), default=0)
        for optimizer in (trainer.optimizer_A, trainer.optimizer_B)
    ]
    if not all(taken):
        sys.exit(f"no training happened: {taken} optimizer steps")
    result = {"seconds": seconds, "generate_seconds": counts["seconds"], "optimizer_steps": taken}
    return result | {"lines": counts["rows"], "generated_tokens": counts["tokens"]}


if __name__ == "__main__":
    main()
