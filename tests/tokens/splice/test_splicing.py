"""The splice equals the text path: every id and label, whatever generation leaves behind, for any tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.tokens import compatibility
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice import splicing
from roundtrip.tokens.splice.canonicality import CanonicalityChecker
from roundtrip.tokens.splice.splicing import IGNORE
from tests.conftest import toy_pairs
from tests.tokens.test_prompt_template import CHAT, PLAIN, TEXTS, TOKENIZERS

BARE = TemplateRecipe(kind="plain", prompt="{source}\n{target}")
TEMPLATES = {"plain": PLAIN, "chat": CHAT, "bare": BARE}
ROW_BUILDERS: dict[tuple[str, str], RowBuilder] = {}
PAIRS = [(en, es) for en, es in toy_pairs()]


def row_builder(name: str, kind: str) -> RowBuilder:
    """Return the row builder of a small tokenizer, made once."""
    if (name, kind) not in ROW_BUILDERS:
        tokenizer = TOKENIZERS[name]
        forward = PromptTemplate(tokenizer, build_segments(tokenizer, TEMPLATES[kind], "en", "es", ()))
        reverse = PromptTemplate(tokenizer, build_segments(tokenizer, TEMPLATES[kind], "es", "en", ()))
        ROW_BUILDERS[name, kind] = compatibility.build_row_builder(
            reverse, forward, PAIRS[::20], compatibility.BuildOptions(num_attacks=300)
        )[0]
    return ROW_BUILDERS[name, kind]


def combinations() -> list[tuple[str, str]]:
    chat = [name for name, tokenizer in TOKENIZERS.items() if tokenizer.chat_template]
    found = [(name, kind) for name in TOKENIZERS for kind in TEMPLATES if kind != "chat" or name in chat]
    # Two that take the text path: every sentence merges with the line break behind it, and nothing else separates it
    # from the target; a SentencePiece without pre-tokenizer joins the first words at the beginning of a text only.
    by_text = {("full stop merges with line break", "bare"), ("SentencePiece", "bare")}
    return [combination for combination in found if combination not in by_text]


def made(
    of: RowBuilder, hypotheses: list[list[int]], targets: list[str], pad: int = -100
) -> tuple[list[TokenRow], list[str]]:
    """Return the built rows, and the reason of each."""
    width = max(1, max(map(len, hypotheses)))
    new_BN = torch.tensor([[*ids, *(width - len(ids)) * [pad]] for ids in hypotheses])
    assert of.tensors is not None
    size_B, _ = splicing.find_ends(new_BN, of.tensors.flags_V)
    texts = [
        of.reverse_template.hypothesis_text(ids[:size]) for ids, size in zip(hypotheses, size_B.tolist(), strict=True)
    ]
    rows, counts = of.build(new_BN, size_B, targets)
    assert of.find_ends(new_BN)[0].tolist() == size_B.tolist()
    other, also = of.build(new_BN, size_B, targets, texts)
    assert counts == also and torch.equal(rows.ids_BT, other.ids_BT) and torch.equal(rows.start_B, other.start_B)
    batch = rows.padded()
    found = []
    for number in range(len(texts)):
        live = batch["attention_mask"][number].bool()
        ids = batch["input_ids"][number][live].tolist()
        labels = batch["labels"][number]
        assert (labels[~live] == IGNORE).all()
        start = int((labels != IGNORE).nonzero()[0])
        assert labels[live][start:].tolist() == ids[start:] and (labels[:start] == IGNORE).all()
        assert batch["position_ids"][number][live].tolist() == list(range(len(ids)))
        found.append(TokenRow(ids, start))
    return found, of.splice(new_BN, size_B, targets)[1]


def by_text(of: RowBuilder, hypotheses: list[list[int]], targets: list[str]) -> list[TokenRow]:
    """Return the text path's rows of hypotheses that end before their first stop token."""
    stops, breaks = set(of.reverse_template.segments.stop_ids), set(of.reverse_template.segments.break_ids)
    texts = []
    for ids in hypotheses:
        end = next((i for i, token in enumerate(ids) if token in stops or token in breaks or token < 0), len(ids))
        texts.append(of.reverse_template.hypothesis_text(ids[: end + (end < len(ids) and ids[end] in breaks)]))
    return of.forward_template.rows(list(zip(texts, targets, strict=True)))


@pytest.mark.parametrize(("name", "kind"), combinations())
def test_canonical_rows_are_spliced_and_equal_the_text_path(name: str, kind: str) -> None:
    used = row_builder(name, kind)
    pairs = PAIRS[3::17]
    hypotheses = [row.ids[row.start :] for row in used.reverse_template.rows([(es, en) for en, es in pairs])]
    targets = [es for _, es in pairs]
    rows, reasons = made(used, hypotheses, targets)
    assert rows == by_text(used, hypotheses, targets) == used.forward_template.rows(pairs)
    assert reasons.count(SPLICED) == len(pairs), set(reasons)


@pytest.mark.parametrize(("name", "kind"), combinations())
@given(data=st.data(), source=TEXTS, target=TEXTS, end=st.sampled_from(["none", "stop", "stop and more", "pad"]))
@settings(max_examples=60, deadline=None)
def test_any_ids_become_the_row_of_the_text_path(
    name: str, kind: str, data: Any, source: str, target: str, end: str
) -> None:
    used = row_builder(name, kind)
    tokenizer = used.forward_template.tokenizer
    row = used.reverse_template.rows([("Hola", source)])[0]
    ids = row.ids[row.start : -1]
    any_id = st.integers(0, len(tokenizer) - 1)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(ids)))
        ids = [*ids[:at], data.draw(any_id), *ids[at + data.draw(st.integers(0, 1)) :]]
    stop = used.reverse_template.segments.stop_ids[0]
    ids = [*ids, *{"none": [], "stop": [stop], "stop and more": [stop, 5, 6], "pad": [-1, -1]}[end]]
    rows, _ = made(used, [ids], [target])
    assert rows == by_text(used, [ids], [target])


@pytest.mark.parametrize("kind", TEMPLATES)
def test_user_text_that_spells_special_tokens_stays_text(kind: str) -> None:
    used = row_builder("pad apart from end", kind)
    tokenizer = used.forward_template.tokenizer
    spelt = tokenizer(" Hola<|im_end|> <|im_start|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    rows, reasons = made(used, [spelt], ["Veo <|im_end|>."])
    special = [token for token in rows[0].ids if token in tokenizer.all_special_ids]
    harmless = made(used, [tokenizer(" Hola", add_special_tokens=False)["input_ids"]], ["Veo."])[0][0]
    assert special == [token for token in harmless.ids if token in tokenizer.all_special_ids]
    # The same text as special ids is no text at all: it takes the text path, which drops it.
    ids = [*tokenizer(" Hola", add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_start|>")]
    rows, reasons = made(used, [[*ids, 40]], ["Veo."])
    assert reasons[0].startswith("special") and rows == by_text(used, [[*ids, 40]], ["Veo."])


def test_a_pair_whose_every_line_merges_takes_the_text_path_with_a_cure() -> None:
    tokenizer = TOKENIZERS["full stop merges with line break"]
    found = compatibility.check_tokenizers(
        tokenizer, tokenizer, BARE, ("en", "es"), PAIRS[::20], compatibility.BuildOptions(num_attacks=100)
    )
    assert found.mode == "text" and found.checker is None and found.share == 0
    assert found.counts == {"merges at a boundary": len(PAIRS[::20])}
    assert found.cure is not None and "use the chat template" in found.cure and "100 % of your lines" in found.cure
    assert found.examples[0].generated[-1] == "."
    assert row_builder("full stop merges with line break", "bare").tensors is None


def test_an_empty_hypothesis_is_counted_and_goes_by_text() -> None:
    used = row_builder("pad is end", "plain")
    stop = used.reverse_template.segments.stop_ids[0]
    blank = used.forward_template.tokenizer(" \n", add_special_tokens=False)["input_ids"]
    rows, reasons = made(used, [[stop], [stop, 40, 41], blank], ["Veo."] * 3)
    assert reasons == ["empty"] * 3
    assert rows == used.forward_template.rows([("", "Veo.")] * 3)


class NoSync(TorchDispatchMode):
    """Fails on every operation that makes the host wait for a device, or whose shape depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal.default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in self.FORBIDDEN):
            raise AssertionError(f"{name} makes the host wait")
        if "index.Tensor" in name and any(t is not None and t.dtype == torch.bool for t in args[1]):
            raise AssertionError(f"{name} by a boolean mask makes the host wait")
        return func(*args, **(kwargs or {}))


def hot(
    new_BN: torch.Tensor, target_BM: torch.Tensor, target_size_B: torch.Tensor, into: Any, checker: CanonicalityChecker
) -> Any:
    """The hot path whole: end, trim, look up, splice, batch."""
    size_B, _ = splicing.find_ends(new_BN, into.flags_V)
    source_BN, source_size_B, mid_B, fits_B = splicing.trim_source(new_BN, size_B, into)
    good_B = checker.lookup(source_BN, source_size_B) & fits_B
    rows = splicing.splice_rows(source_BN, source_size_B, mid_B, target_BM, target_size_B, into)
    return good_B, rows.padded()


def batch(used: RowBuilder) -> tuple[Any, ...]:
    pairs = PAIRS[:16]
    rows = used.reverse_template.rows([(es, en) for en, es in pairs])
    new = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids[row.start :]) for row in rows], True, -100)
    targets = [torch.tensor(ids) for ids in used.forward_template.targets([es for _, es in pairs])]
    target_BM = torch.nn.utils.rnn.pad_sequence(targets, True, 0)
    return new, target_BM, torch.tensor([len(ids) for ids in targets]), used.tensors, used.checker


def test_the_hot_path_never_waits() -> None:
    arguments = batch(row_builder("pad apart from end", "chat"))
    with NoSync():
        hot(*arguments)


def test_the_test_of_waiting_can_fail() -> None:
    for wait in (lambda t: t[0].item(), lambda t: t[t > 1], lambda t: t.nonzero(), lambda t: bool((t > 1).any())):
        with pytest.raises(AssertionError, match="wait"), NoSync():
            wait(torch.arange(3))


def test_the_hot_path_compiles_as_one_graph() -> None:
    arguments = batch(row_builder("pad apart from end", "chat"))
    torch._dynamo.reset()
    compiled = torch.compile(hot, fullgraph=True, backend="eager")
    for plain, other in zip(_flat(hot(*arguments)), _flat(compiled(*arguments)), strict=True):
        assert torch.equal(plain, other)


def _flat(found: Any) -> list[torch.Tensor]:
    return [found[0], *found[1].values()]


@pytest.mark.gpu
def test_the_hot_path_never_waits_on_a_gpu() -> None:
    new, target_BM, target_size_B, _, _ = batch(row_builder("pad apart from end", "chat"))
    used = row_builder("pad apart from end", "chat")
    # As many attacks as on the CPU: what they find out about pairs of tokens is remembered.
    options = compatibility.BuildOptions(device=torch.device("cuda"), num_attacks=300)
    there, _ = compatibility.build_row_builder(used.reverse_template, used.forward_template, PAIRS[::20], options)
    arguments = (new.cuda(), target_BM.cuda(), target_size_B.cuda(), there.tensors, there.checker)
    hot(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = hot(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for plain, other in zip(_flat(hot(*batch(used))), _flat(found), strict=True):
        assert torch.equal(plain, other.cpu())


def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above compare can fail: each part of the proof, taken out, gives wrong rows."""
    used = row_builder("full stop merges with line break", "plain")
    tokenizer = used.forward_template.tokenizer
    ids = tokenizer(" Veo la casa.", add_special_tokens=False)["input_ids"]
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in ("Ġ", "V", "e", "o")]
    target = ["Hello there."]

    def wrong(hypothesis: list[int]) -> bool:
        return made(used, [hypothesis], target)[0] != by_text(used, [hypothesis], target)

    assert not wrong(ids) and not wrong(letters)
    with monkeypatch.context() as patch:  # no checker
        patch.setattr(RowBuilder, "_verify", lambda self, rows, checked, texts, prompts: [0] * len(checked))
        assert wrong(letters)
    assert used.tensors is not None
    # no boundary tables
    same_V = torch.arange(len(tokenizer))
    bare = replace(used.tensors, first_V=same_V, last_V=same_V, mid_V=same_V * 0)
    assert made(replace(used, tensors=bare), [ids], target)[0] != by_text(used, [ids], target)
    with monkeypatch.context() as patch:  # labels shifted by one
        whole = splicing.splice_rows

        def shifted(*arguments: Any) -> splicing.SplicedRows:
            rows = whole(*arguments)
            return replace(rows, start_B=rows.start_B + 1)

        patch.setattr(splicing, "splice_rows", shifted)
        assert wrong(ids)
    with monkeypatch.context() as patch:  # the end found by id, the last one in the row
        ends = lambda new_BN, flags_V: ((new_BN >= 0).sum(1), (new_BN >= 0).any(1))  # noqa: E731
        patch.setattr(splicing, "find_ends", ends)
        assert wrong([*ids, used.reverse_template.segments.stop_ids[0], 40, 41])
