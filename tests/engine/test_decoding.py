"""Our decoding loop against `generate` of transformers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from roundtrip.backtranslation.dev_scoring import greedy_settings
from roundtrip.data.corpora import prepare
from roundtrip.engine import cuda_graphs, decoding, translator
from roundtrip.engine import generate as generating
from roundtrip.engine.cuda_graphs import GraphedSteps
from roundtrip.engine.generate import generate
from roundtrip.engine.request import Callbacks, GenerationRequest, StopRule
from roundtrip.recipe import loader
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.errors import ModelError
from tests.conftest import WriteRecipe
from tests.engine.test_train_step import MODELS, rows
from tests.runs import assert_same, end_state, go


def _biased() -> Any:
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False)
    )  # fmt: skip


ALL = MODELS | {"biases, own head": _biased}
STOPS = list(range(100, 180))
PROMPTS = [row.ids[: 2 + number] for number, row in enumerate(rows(9, seed=2))]
# Longer than a page of the cache, with a beginning in common.
PROMPTS[7:] = [[*range(20, 40), 7], [*range(20, 40), 8]]
LIMITS = [3 + 2 * (number % 7) for number in range(9)]


def model_of(kind: str) -> Any:
    torch.manual_seed(4)
    model = ALL[kind]().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # the library makes them zero
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways have been taken, by name."""
    found: list[str] = []
    for name in ("decode", "generate_hf"):
        original = getattr(generating, name)

        def spy(*arguments: Any, name: str = name, original: Any = original) -> Any:
            found.append(name)
            return original(*arguments)

        monkeypatch.setattr(generating, name, spy)
    return found


def written(model: Any, settings: Generate, seed: int = 1) -> list[tuple[list[int], bool]]:
    found = generate(model, GenerationRequest(PROMPTS, LIMITS, settings, StopRule(STOPS), seed))
    return list(zip(found.lists(), found.finished_B.tolist(), strict=True))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_is_the_same_token_by_token(kind: str, attention: str, taken: list[str]) -> None:
    model = model_of(kind)
    model.set_attn_implementation(attention)
    ours = written(model, Generate(max_tokens_per_batch=80))
    assert set(taken) == {"decode"}
    assert {finished for _, finished in ours} == {True, False}, "the test wants both kinds"
    taken.clear()
    assert written(model, Generate(max_tokens_per_batch=80, engine="transformers")) == ours
    assert set(taken) == {"generate_hf"}
    assert model.config._attn_implementation == attention, "the model is as it was"
    assert written(model, Generate(max_tokens_per_batch=80)) == ours


def test_what_the_author_of_a_model_ships_does_not_mix_in() -> None:
    model = model_of("RoPE, tied head")
    ours = written(model, Generate())
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    assert written(model, Generate(engine="transformers")) == ours
    assert model.generation_config.repetition_penalty == 9.0


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}, {"top_p": 0.9}])
def test_sampled_rows_match_in_distribution(settings: dict[str, Any]) -> None:
    """Frequencies of the first token and of the first two, ours against those of transformers, to four deviations."""
    model = model_of("RoPE, tied head")
    found = []
    for engine in ("native", "transformers"):
        recipe = Generate(engine=engine, temperature=0.9, max_tokens_per_batch=40_000, **settings)  # type: ignore[arg-type]
        request = GenerationRequest([PROMPTS[5]] * 4000, [2] * 4000, recipe, StopRule([1]), 3)
        made = generate(model, request).lists()
        found.append([Counter(tuple(row[:size]) for row in made) for size in (1, 2)])
    for ours, theirs in zip(*found, strict=True):
        common = [key for key, number in (ours + theirs).most_common(12) if number > 60]
        assert common
        for key in common:
            share = (ours[key] + theirs[key]) / 8000
            assert abs(ours[key] - theirs[key]) / 4000 <= 4 * math.sqrt(2 * share * (1 - share) / 4000)
        # What one may sample, the other may: nothing comes up often on one side only.
        assert all(ours[key] and theirs[key] for key, number in (ours + theirs).items() if number > 30)


def test_a_run_is_the_same_by_both_engines(write_recipe: WriteRecipe, tmp_path: Path, taken: list[str]) -> None:
    path = write_recipe()
    go(path, tmp_path / "native", overrides=("generate.temperature=0.0",))
    taken.clear()
    go(path, tmp_path / "library", overrides=("generate.temperature=0.0", "generate.engine=transformers"))
    assert "decode" not in taken and taken
    assert_same(end_state(tmp_path / "library"), end_state(tmp_path / "native"))


# ---------------------------------------------------------------------------- several hypotheses, and how likely


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9, "num_candidates": 3}])
def test_log_probabilities_are_those_of_a_forward_pass_over_what_was_written(
    kind: str, settings: dict[str, Any]
) -> None:
    model = model_of(kind)
    recipe = Generate(max_tokens_per_batch=300, **settings)
    stop = StopRule(STOPS[1:], text_stop_ids=STOPS[:1])
    request = GenerationRequest(PROMPTS, LIMITS, recipe, stop, 1, return_logprobs=True)
    found = generate(model, request)
    prompts = [prompt for prompt in PROMPTS for _ in range(recipe.num_candidates)]
    assert found.logprob_B is not None and len(found.logprob_B) == len(prompts)
    kinds = set()
    for ids, size, finished, value, prompt in zip(
        found.ids_BN.tolist(), found.size_B.tolist(), found.finished_B.tolist(), found.logprob_B.tolist(), prompts,
        strict=True,
    ):  # fmt: skip
        ends_in_text = size > 0 and ids[size - 1] == STOPS[0]
        own = ids[: size + (finished and not ends_in_text)]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *own]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(own)[:, None]).sum()
        assert value == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
        kinds.add((finished, ends_in_text))
    assert (True, False) in kinds and ((False, False) in kinds or settings)
    if recipe.temperature == 0:
        other = generate(model, replace(request, settings=recipe.model_copy(update={"engine": "transformers"})))
        assert other.logprob_B is not None
        assert torch.allclose(other.logprob_B, found.logprob_B, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["native", "transformers"])
def test_samples_of_one_prompt_stand_next_to_each_other(engine: Any) -> None:
    """What is likely after one prompt is not after another, so that mixed places would show."""
    model = model_of("RoPE, tied head")
    recipe = Generate(engine=engine, temperature=0.3, num_candidates=50, max_tokens_per_batch=900)
    seen: list[int] = []
    made = generate(
        model,
        GenerationRequest(PROMPTS, LIMITS, recipe, StopRule(STOPS), 2),
        callbacks=Callbacks(on_batch=lambda indices, hypotheses: seen.extend(indices)),
    ).lists()
    assert sorted(seen) == list(range(9 * 50)) and len(made) == 450
    for number, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            share = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 0.3).softmax(-1)
        first = [row[0] if row else None for row in made[number * 50 : number * 50 + 50]]
        top = int(share.argmax())
        expected = 0.0 if top in STOPS else float(share[top])
        assert abs(first.count(top) / 50 - expected) <= 4 * math.sqrt(0.25 / 50)


def test_greedy_samples_are_the_greedy_row() -> None:
    model = model_of("RoPE, tied head")
    request = GenerationRequest(PROMPTS, LIMITS, Generate(), StopRule(STOPS), 1)
    once = generate(model, request).lists()
    thrice = generate(model, replace(request, settings=Generate(num_candidates=3))).lists()
    assert thrice == [row for row in once for _ in range(3)]


# ------------------------------------------------------------------------------------------ steps of a fixed shape


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a CPU take steps of a fixed shape (no graph); the room of each cache that was made."""
    made: list[int] = []

    class Seen(GraphedSteps):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            made.append(self.room)

    monkeypatch.setattr(decoding, "GRAPHS_ON", ("cpu",))
    monkeypatch.setattr(decoding, "GraphedSteps", Seen)
    return made


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("room", [1, 3, 64])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9, "num_candidates": 3}])
def test_steps_of_a_fixed_shape_write_the_same(
    kind: str, room: int, settings: dict[str, Any], fixed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through growing caches and rows that leave; a sliding window keeps to the growing cache."""
    monkeypatch.setattr(cuda_graphs, "ROOM", room)
    # Rows leave the batch at the same steps, so that the same random numbers are drawn.
    monkeypatch.setattr(decoding, "STATIC_COMPACT_SHARE", decoding.COMPACT_SHARE)
    model = model_of(kind)
    expected = written(model, Generate(max_tokens_per_batch=300, **settings))
    assert not fixed
    found = written(model, Generate(max_tokens_per_batch=300, cuda_graphs=True, **settings))
    assert found == expected
    assert bool(fixed) == ("sliding" not in kind)
    assert set(fixed) <= {room}


@pytest.mark.parametrize("graphs", [False, True])
def test_a_row_at_its_limit_stays_within_the_positions_of_the_model(graphs: bool, fixed: list[int]) -> None:
    """It waits in the batch for shorter prompts with more to write, and learned positions are a table with an end."""
    model = model_of("learned positions")
    prompts, limits = [list(range(20, 80)), *([5, 6, 7 + number] for number in range(7))], [30] + [80] * 7
    settings = Generate(cuda_graphs=graphs)
    together = generate(model, GenerationRequest(prompts, limits, settings, StopRule([]), 1)).lists()
    assert list(map(len, together)) == limits and bool(fixed) == graphs
    request = GenerationRequest(prompts[:1], limits[:1], settings, StopRule([]), 1)
    assert generate(model, request).lists() == together[:1]


def test_a_gpu_setting_is_refused_in_training_elsewhere(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="CUDA graphs require a CUDA device; this model is on cpu"):
        go(write_recipe(), tmp_path / "run", overrides=("generate.cuda_graphs=true",))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["RoPE, tied head", "learned positions", "biases, own head"])
def test_replayed_graphs_write_what_plain_steps_write(kind: str) -> None:
    model = model_of(kind).cuda()
    # Through more than one graph, and within the positions of the smallest of these models.
    prompts, limits = (
        PROMPTS * 4,
        [min(9 * limit, 94 - len(prompt)) for prompt, limit in zip(PROMPTS, LIMITS, strict=True)] * 4,
    )
    found = [
        generate(
            model, GenerationRequest(prompts, limits, Generate(cuda_graphs=graphs), StopRule(STOPS[:9]), 1)
        ).lists()
        for graphs in (False, True)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_greedy_is_the_same_on_real_text_with_a_real_model(tmp_path: Path) -> None:
    """SmolLM2 in float32 on dev lines of the quickstart: packed weights and all."""
    loaded = loader.load_recipe("quickstart", ["model.dtype=float32"])
    corpora = prepare(loaded.recipe, loaded.folder, tmp_path, lambda text: None)
    lines = [source for source, _ in corpora.dev[:100]]
    one = next(iter(translator.load(loaded.recipe, loaded.folder).values()))
    assert one.base.dtype == torch.float32
    settings = greedy_settings(loaded.recipe)
    ours = one.translate(lines, settings, 0)
    theirs = one.translate(lines, settings.model_copy(update={"engine": "transformers"}), 0)
    assert ours.hypotheses.lists() == theirs.hypotheses.lists()
    assert ours.finished == theirs.finished and any(ours.finished)
