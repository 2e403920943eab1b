"""What the documents show, runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import ROOT
from tests.conftest import toy_pairs

DOCS = ROOT / "docs"


def test_the_loop_of_ones_own_trains(model_folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "tokens.md").read_text(encoding="utf-8"), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = model.get_input_embeddings().weight.detach().clone()
    lines = [es for _, es in toy_pairs()]
    names = {
        "model": model,
        "tokenizer": tokenizer,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "pairs": toy_pairs()[::30],
        "batches": [lines[start : start + 8] for start in (0, 8)],
    }
    exec(code, names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("splice device")
    assert len(shown) == 3 and all("'splice'" in line for line in shown[1:])
    assert not torch.equal(before, model.get_input_embeddings().weight)
