"""One base with two adapters, two models, models from nothing: the same promises for each."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from roundtrip.backtranslation import trained_models
from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.backtranslation.run_folder import RunFolder
from roundtrip.backtranslation.trainer import Trainer
from roundtrip.engine import long_inputs, translator
from roundtrip.engine.train_step import StepSettings, loss_sum, train_step
from roundtrip.models import direction_model, from_scratch
from roundtrip.models.direction_model import frozen_hashes
from roundtrip.models.optimizer import Optimizer
from roundtrip.recipe import loader
from roundtrip.recipe.schema import Adapter, Model
from roundtrip.runtime.errors import Interrupted, ModelError, TextError
from roundtrip.tokens.batching import TokenDataset, collate
from tests import ROOT
from tests.conftest import WriteRecipe, bpe, pretrain, toy_pairs, wrap
from tests.runs import NAMES, assert_same, end_state, go

LORA = {"en-es": Adapter(rank=4)}
FULL = 'method = "full"'
SCRATCH = "from_scratch = {{ vocab_size = 420, num_layers = 2, hidden_size = 48 }}"
# What each pairing changes in the small recipe: in [adapter] and in [model].
PAIRINGS = {
    "one base": ("rank = 4", ""),
    "one base, other kinds": ('rank = 4\n[adapter."en-es"]\nmethod = "rsdora"\n[adapter."es-en"]\nrank = 2', ""),
    "one base, checkpointing": ("rank = 4", "gradient_checkpointing = true"),
    "one base, rslora and lora+": ('rank = 4\nmethod = "rslora"\nloraplus_lr_ratio = 4.0', ""),
    "own bases, pissa": ('rank = 4\nmethod = "pissa"', "shared = false"),
    "own bases, olora and dora": (
        'rank = 4\n[adapter."en-es"]\nmethod = "olora"\n[adapter."es-en"]\nmethod = "dora"',
        "shared = false",
    ),
    "full": (FULL, ""),
    "full, checkpointing": (FULL, "gradient_checkpointing = true"),
    "full and an adapter": ('rank = 4\n[adapter."es-en"]\nmethod = "full"', ""),
    "another model": ("rank = 4", '[model."es-en"]\npath = "{other}"'),
    "from scratch": (FULL, "scratch"),
}


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A smaller model with nothing in common with the small one: another tokenizer, another shape."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer = wrap(bpe([text for pair in toy_pairs() for text in pair], vocab_size=300))
    config = AutoModelForCausalLM.from_pretrained(model_folder).config
    config.vocab_size, config.hidden_size, config.num_attention_heads = len(tokenizer), 32, 2
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    pretrain(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A model whose layers are as wide as bitsandbytes wants them."""
    folder = tmp_path_factory.mktemp("wide")
    config = AutoModelForCausalLM.from_pretrained(model_folder).config
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def paired(write_recipe: WriteRecipe, model_folder: Path, other_folder: Path) -> Any:
    """Write the small recipe with one of the pairings."""

    def write(pairing: str, *changes: tuple[str, str]) -> Path:
        adapter, model = PAIRINGS[pairing]
        path = f'path = "{model_folder}"\ndtype = "float32"'
        new = path if model != "scratch" else SCRATCH.replace("{{", "{").replace("}}", "}") + '\ndtype = "float32"'
        if model and model != "scratch":
            new += "\n" + model.replace("{other}", str(other_folder))
        own = "rank = 4\ndropout = 0.1"
        dropout = adapter.replace("rank = 4", own, 1)
        return write_recipe((path, new), (own, dropout), *changes)

    return write


def rows(one: translator.Translator) -> TokenDataset:
    pairs = toy_pairs()[:6]
    return TokenDataset.of(one.template.rows(pairs if one.direction.name == "en-es" else [(b, a) for a, b in pairs]))


def weights(one: translator.Translator) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in one.direction_model.parameters().items()}


def logits(one: translator.Translator, *, use_adapter: bool = True) -> torch.Tensor:
    table = rows(one)
    batch = collate(table, range(len(table)), one.base.pad_id)
    with one.direction_model.generating(use_adapter=use_adapter) as model, torch.no_grad():
        found: torch.Tensor = model(input_ids=batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
    return found.clone()


def load(path: Path, tmp_path: Path) -> dict[str, translator.Translator]:
    from rich.console import Console

    from roundtrip.backtranslation import session
    from roundtrip.backtranslation.run_folder import with_model_folders
    from roundtrip.data.corpora import prepare
    from roundtrip.runtime.event_log import EventLog

    loaded = loader.load_recipe(str(path))
    (tmp_path / "text").mkdir(exist_ok=True, parents=True)
    corpora = prepare(loaded.recipe, loaded.folder, tmp_path / "text", lambda text: None)
    recipe = with_model_folders(loaded.recipe, tmp_path / "base")
    return session.load_models(recipe, loaded.folder, corpora, EventLog(Console(file=io.StringIO())))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_both_learn_and_neither_touches_the_other(paired: Any, tmp_path: Path, pairing: str) -> None:
    both = load(paired(pairing), tmp_path)
    learners = {name: one.direction_model for name, one in both.items()}
    frozen = frozen_hashes(learners)
    train = loader.load_recipe(str(paired(pairing))).recipe.train
    optimizers = {name: Optimizer(one.parameters(), train, 10, one.adapter) for name, one in learners.items()}
    for number in range(3):
        for name, one in both.items():
            (other,) = (two for key, two in both.items() if key != name)
            before, untouched = weights(one), weights(other)
            with one.direction_model.training():
                model = one.direction_model.model
                result = train_step(
                    model, optimizers[name], rows(one), range(6), StepSettings(one.base.pad_id, 2048), seed=number
                )
            assert result.grad_norm > 0
            after, same = weights(one), weights(other)
            # With B at zero, A gets no gradient in the first step.
            assert number == 0 or all(not torch.equal(before[key], after[key]) for key in after), pairing
            assert all(torch.equal(untouched[key], same[key]) for key in same), "the other direction moved"
    assert frozen_hashes(learners) == frozen
    for one in both.values():
        assert torch.equal(logits(one), logits(one)), "what generates is in eval mode"
        assert not any(parameter.requires_grad for parameter in one.direction_model.model.parameters())
        if not one.direction_model.trains_all_weights:
            assert not torch.allclose(logits(one), logits(one, use_adapter=False), atol=1e-4)


@pytest.mark.parametrize("pairing", ["one base, checkpointing", "full, checkpointing"])
def test_gradients_reach_the_first_layer_under_checkpointing(paired: Any, tmp_path: Path, pairing: str) -> None:
    one = load(paired(pairing), tmp_path)["en-es"]
    batch = collate(rows(one), range(6), one.base.pad_id)
    with one.direction_model.training():
        assert one.base.model.is_activation_checkpointing
        loss_sum(one.direction_model.model, batch).backward()
    first = {
        k: p.grad for k, p in one.direction_model.parameters().items() if ".layers.0." in k and ".lora_A." not in k
    }
    assert first and all(grad is not None and grad.abs().max() > 0 for grad in first.values())


@pytest.mark.parametrize("pairing", ["one base, other kinds", "own bases, pissa", "full", "another model"])
def test_saved_and_restored_gives_the_same_logits(paired: Any, tmp_path: Path, pairing: str) -> None:
    both = load(paired(pairing), tmp_path)
    again = load(paired(pairing), tmp_path)
    for name, one in both.items():
        for parameter in one.direction_model.parameters().values():
            parameter.data += 0.02
        one.direction_model.export(tmp_path / "saved" / name)
        before = logits(one)
        again[name].direction_model.restore(tmp_path / "saved" / name)
        assert torch.equal(logits(again[name]), before)
        if one.direction_model.trains_all_weights:
            one.direction_model.restore(None)
        published = AutoModelForCausalLM.from_pretrained(one.base.location, dtype="float32")
        batch = collate(rows(one), range(6), one.base.pad_id)
        with torch.no_grad():
            base = published(input_ids=batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
        assert torch.equal(logits(one, use_adapter=False), base), "the bare base is the one that was published"
        assert not torch.allclose(base, before, atol=1e-2)


@pytest.mark.parametrize(
    "pairing",
    [
        "one base, rslora and lora+",
        "full",
        "own bases, pissa",
        "another model",
        "from scratch",
        "full and an adapter",
    ],
)
def test_whole_runs_resume_and_translate(
    paired: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairing: str
) -> None:
    more = [("parallel_epochs = 1", "parallel_epochs = 8\npretrain_lines = 20"), ("train = 32", "train = 200")]
    recipe = paired(pairing, *(more if pairing == "from scratch" else []))
    greedy_sources = ("generate.temperature=0.0",)  # sampled ones are not all canonical
    shown = go(recipe, tmp_path / "whole", overrides=greedy_sources)
    step = Trainer.train_step

    def stopping(self: Trainer, *arguments: Any) -> Any:
        result = step(self, *arguments)
        # What plain text has taught counts for both directions at once.
        if self.state.total_steps() == (7 if pairing == "from scratch" else 6):
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(Interrupted):
        go(recipe, tmp_path / "run", overrides=greedy_sources)
    monkeypatch.undo()
    go(recipe, tmp_path / "run", resume=True, overrides=greedy_sources)
    assert_same(end_state(tmp_path / "run"), end_state(tmp_path / "whole"))
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    stages = ["base", *(["text"] if pairing == "from scratch" else []), "parallel", "round-1"]
    assert [stage for stage in metrics["test"] if stage != "copy"] == stages
    assert metrics["test"]["base"] != metrics["test"]["round-1"]
    # The base is scored on test at the end, from the weights it began with.
    bare = load(recipe, tmp_path / "again")
    expansions = RunFolder(tmp_path / "whole").manifest().expansions
    for name, alone in bare.items():
        one, side = replace(alone, expansion=expansions[name]), 0 if name == "en-es" else 1
        lines = [line.split("\t")[side] for line in (tmp_path / "whole/data/test.tsv").read_text().splitlines()]
        texts = one.translate(
            lines, greedy_settings(loader.load_recipe(str(recipe)).recipe), 0, use_adapter=False
        ).texts
        kept = (tmp_path / "whole" / "translations" / f"test.base.{name}.txt").read_text().split("\n")[:-1]
        assert [" ".join(text.split()) for text in texts] == kept
    assert ("text path for all rows" in shown) == (pairing == "another model"), shown
    for name in NAMES:
        run = RunFolder(tmp_path / "whole")
        one = trained_models.load(run, trained_models.direction_into(run, name[-2:]), stage="round-1")
        settings = greedy_settings(run.recipe())
        sources = (tmp_path / "whole" / "data" / "test.tsv").read_text().splitlines()
        side = 0 if name == "en-es" else 1
        lines = [line.split("\t")[side] for line in sources]
        written = list(long_inputs.translate_any_length(one, lines, settings, [], []))
        kept = (tmp_path / "whole" / "translations" / f"test.round-1.{name}.txt").read_text().split("\n")[:-1]
        assert written == kept, "what is saved translates as it did in the run"


def test_a_whole_model_loads_with_transformers_alone(paired: Any, tmp_path: Path) -> None:
    one = load(paired("full"), tmp_path)["en-es"]
    for parameter in one.direction_model.parameters().values():
        parameter.data += 0.01
    one.direction_model.export(tmp_path / "saved")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    batch = collate(rows(one), range(6), one.base.pad_id)
    with torch.no_grad():
        theirs = alone(input_ids=batch.ids_BT, attention_mask=batch.inputs["attention_mask"]).logits
    assert torch.equal(theirs, logits(one))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer("I see the moon.")["input_ids"] == one.base.tokenizer("I see the moon.")["input_ids"]


def test_a_tokenizer_from_scratch_loses_nothing_and_joins_as_sentencepiece_does() -> None:
    lines = [text for pair in toy_pairs() for text in pair]
    tokenizer, trained_model = from_scratch.train_tokenizer(lines, 420), from_scratch.train_sentencepiece(lines, 420)
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained_model)
    assert len(tokenizer) == 420
    for text in (*lines, "Ωmega, 家 and 🙂: 12 345", "two  spaces", "tab\there", "ends "):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.unk_token_id not in ids
        assert ids == processor.encode(text), text


@pytest.mark.parametrize(("size", "cure"), [(300, "raise it"), (5000, "lower it")])
def test_a_vocabulary_that_does_not_come_out_says_which_way(size: int, cure: str) -> None:
    texts = [text for pair in toy_pairs() for text in pair]
    with pytest.raises(ModelError, match=cure):
        from_scratch.train_tokenizer([*texts, "".join(map(chr, range(0x4E00, 0x4E60)))], size)


def test_a_model_from_scratch_is_found_from_anywhere_and_made_anew_for_another_recipe(
    paired: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder of a run is relative to where the command is called, not to the recipe."""
    recipe = paired("from scratch", ("parallel_epochs = 1", "parallel_epochs = 8"), ("train = 32", "train = 200"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(TextError, match="the model 512 positions"):
        go(recipe, Path("runs/small"), overrides=("generate.max_length_ratio=200",))
    longer = ("train.max_length=600", "train.max_tokens_per_microbatch=600")
    go(recipe, Path("runs/small"), overrides=longer)
    one = trained_models.load(
        RunFolder(Path("runs/small")), trained_models.direction_into(RunFolder(Path("runs/small")), "es")
    )
    assert one.base.max_positions == 600


def test_plain_text_is_read_without_rounds(paired: Any, tmp_path: Path) -> None:
    changes = [("parallel_epochs = 1", "parallel_epochs = 1\npretrain_lines = 500"), ("count = 1", "count = 0")]
    shown = go(paired("from scratch", *changes), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    block = next(event for event in events if event["event"] == "examples")
    assert (block["monolingual"], block["parallel"], block["synthetic"]) == (1000, 0, 0)
    assert "all pretraining lines of en were read; the next ones start over" in shown


def test_tables_in_a_directions_table_go_over_those_of_both(paired: Any) -> None:
    path = paired("from scratch")
    path.write_text(path.read_text() + '\n[model."es-en".from_scratch]\nnum_layers = 3\n')
    recipe = loader.load_recipe(str(path), ['model."es-en".gradient_checkpointing=true']).recipe
    one, other = (recipe.model[name].from_scratch for name in NAMES)
    assert one is not None and other is not None
    assert (one.num_layers, other.num_layers) == (2, 3) and one.vocab_size == other.vocab_size == 420
    assert [recipe.model[name].gradient_checkpointing for name in NAMES] == [False, True]


def test_a_quantized_base_does_not_train_on_a_cpu(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    path = write_recipe(('dtype = "float32"', 'quantize = "4bit"\ndevice = "cpu"'))
    with pytest.raises(ModelError, match="cannot be trained on a CPU"):
        go(path, tmp_path / "run")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_a_quantized_base_without_its_library_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"requires bitsandbytes.*\n.*roundtrip-mt\[quantize\]"):
        direction_model.load(
            {"en-es": Model(path=str(model_folder), quantize="4bit")}, LORA, ROOT, one_base=False, seed=1
        )


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantized_base_generates_through_its_adapter(wide_folder: Path, bits: Any) -> None:
    pytest.importorskip("bitsandbytes")
    spec = Model(path=str(wide_folder), dtype="float32")
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for quantize in ("none", bits):
        here = spec.model_copy(update={"quantize": quantize})
        one = direction_model.load({"en-es": here}, LORA, ROOT, one_base=False, seed=1)["en-es"]
        assert (one.merged_copy is None) == (quantize != "none")
        for parameter in one.parameters().values():
            parameter.data += 0.02
        with one.generating() as model, torch.no_grad():
            adapted = model(ids.to(one.base.device)).logits.float().cpu()
        with one.generating(use_adapter=False) as model, torch.no_grad():
            found.append((adapted, model(ids.to(one.base.device)).logits.float().cpu()))
        assert not any(parameter.requires_grad for parameter in one.model.parameters())
    for exact, rounded in zip(*found, strict=True):
        assert 0 < (exact - rounded).abs().mean() < 0.25 * exact.abs().mean()
    assert not torch.allclose(*found[1], atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "method"), [("8bit", "lora"), ("4bit", "lora"), ("4bit", "dora")])
def test_a_quantized_base_trains(wide_folder: Path, bits: Any, method: Any) -> None:
    pytest.importorskip("bitsandbytes")
    spec = Model(path=str(wide_folder), quantize=bits, dtype="bfloat16")
    one = direction_model.load({"en-es": spec}, {"en-es": Adapter(method=method)}, ROOT, one_base=False, seed=1)[
        "en-es"
    ]
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(1)).to(one.base.device)
    with one.training():
        one.model(ids, labels=ids).loss.backward()
    grads = {name: value.grad for name, value in one.parameters().items() if ".lora_A." not in name}
    assert grads and all(grad is not None and grad.abs().max() > 0 for grad in grads.values())
