"""The checker: each companion of the pair rule is needed, the memory of pairs lasts, and attacks find nothing."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.pre_tokenizers import ByteLevel

from benchmarks import zoo
from roundtrip.recipe.schema import TemplateRecipe
from roundtrip.tokens import compatibility
from roundtrip.tokens.audit import audit_rules, canonical_hypotheses, compare_rows
from roundtrip.tokens.literal_encoding import encoder
from roundtrip.tokens.prompt_segments import build_segments
from roundtrip.tokens.prompt_template import PromptTemplate
from roundtrip.tokens.row_builder import SPLICED, RowBuilder
from roundtrip.tokens.splice import pair_rules as rules
from roundtrip.tokens.splice import vocabulary
from roundtrip.tokens.splice.canonicality import PAIR, PROVED, SPECIAL, CanonicalityChecker, contains, sorted_table
from roundtrip.tokens.splice.pair_rules import PairRules
from tests.conftest import wrap

PLAIN = TemplateRecipe(kind="plain")


def check(checker: CanonicalityChecker, rows: list[list[int]]) -> list[int]:
    """Return the reason of each row, boundaries aside."""
    width = max(map(len, rows))
    ids_BN = torch.tensor([[*row, *(width - len(row)) * [0]] for row in rows])
    return checker.verify(ids_BN, torch.tensor([len(row) for row in rows])).tolist()


def fresh(tokenizer: Any) -> CanonicalityChecker:
    return CanonicalityChecker(PairRules(tokenizer), torch.device("cpu"))


def both_templates(tokenizer: Any, text: TemplateRecipe = PLAIN) -> tuple[PromptTemplate, PromptTemplate]:
    """Return the templates of en-es and es-en."""
    forward, reverse = (
        PromptTemplate(tokenizer, build_segments(tokenizer, text, *codes, ())) for codes in (("en", "es"), ("es", "en"))
    )
    return forward, reverse


def build(tokenizer: Any, text: TemplateRecipe = PLAIN) -> RowBuilder:
    """Return a row builder with the device checker."""
    forward, reverse = both_templates(tokenizer, text)
    lines = [("The house is red", "La casa es roja"), ("A new door", "Una puerta")] * 4
    options = compatibility.BuildOptions(checker="device", num_attacks=50)
    return compatibility.build_row_builder(reverse, forward, lines, options)[0]


def canonical(tokenizer: Any, row: list[int]) -> bool:
    backend = tokenizer.backend_tokenizer
    return bool(backend.encode(backend.decode(row), add_special_tokens=False).ids == row)


CODES = st.integers(0, torch.iinfo(torch.int64).max - 1)


@given(st.sets(CODES), st.sets(CODES))
def test_a_table_contains_its_codes_and_no_others(inside: set[int], others: set[int]) -> None:
    asked = [*inside, *others]
    found = contains(sorted_table(inside, torch.device("cpu")), torch.tensor(asked, dtype=torch.int64))
    assert found.tolist() == [code in inside for code in asked]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen", "deepseek", "sentencepiece", "gemma"])
def test_canonical_rows_are_good_and_known_the_second_time(name: str) -> None:
    tokenizer = zoo.small()[name]
    encode = encoder(tokenizer.backend_tokenizer, specials=False)
    lines = (line for code, number in (("es", 100), ("en", 100), ("ja", 60)) for line in zoo.lines(code, number))
    rows = [ids[1:] for ids in encode([f"\n{line}" for line in lines]) if len(ids) > 2]
    checker = fresh(tokenizer)
    whole = [row for row in rows if not (checker.pairs.vocabulary.flags_V[row] & vocabulary.PARTIAL).any()]
    assert len(whole) > 100 and check(checker, whole).count(PROVED) >= 0.9 * len(whole)
    check(checker, rows)
    asked = checker.num_asked
    assert asked
    check(checker, rows)
    assert checker.num_asked == asked
    other = fresh(tokenizer)
    other.restore(checker.state())
    assert check(other, rows) == check(checker, rows) and not other.num_asked


def test_a_pair_that_holds_alone_must_hold_behind_punctuation(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's pre-tokenizer cuts `'ll` off: `l` `le` is right in front of a space and wrong behind an apostrophe."""
    tokenizer = zoo.small()["gpt2"]
    vocab = tokenizer.get_vocab()
    pair = (vocab["l"], vocab["le"])
    assert PairRules(tokenizer).settle([pair]) == [False]
    monkeypatch.setattr(rules, "CONTEXTS", ("\n", "", " "))
    assert PairRules(tokenizer).settle([pair]) == [True], "with few contexts the pair comes through"


@pytest.mark.slow
def test_deepseek_cuts_behind_a_slash() -> None:
    """Its pre-tokenizer takes `/ostatn` apart from `í`; behind a letter the word is whole."""
    tokenizer = zoo.load("deepseek")
    encode = encoder(tokenizer.backend_tokenizer, specials=False)
    (behind,) = encode(["/ostatní"])
    row = [*encode(["x ostat"])[0], *behind[-2:]]
    assert encode(["x ostatní"])[0] == [*row[:-2], *encode(["ní"])[0]] != row
    assert check(fresh(tokenizer), [row]) == [PAIR]


def test_what_is_wrong_in_some_context_is_verified_by_the_host() -> None:
    """`l` `le` is wrong behind an apostrophe, and right in `q` `l` `le`: the row is spliced, the wrong one is not."""
    used = build(zoo.small()["gpt2"])
    vocab = used.forward_template.tokenizer.get_vocab()
    right = [vocab["Ġ"], vocab["q"], vocab["l"], vocab["le"]]
    wrong = [vocab["Ġ"], vocab["'"], vocab["l"], vocab["le"]]
    assert used.checker is not None and used.checker.pairs.settle([(vocab["l"], vocab["le"])]) == [False]
    assert check(used.checker, [right, wrong]) == [PAIR, PAIR]
    for ids, reason in ((right, SPLICED), (wrong, "not canonical inside")):
        reasons, expected, got = zip(*compare_rows(used, [ids], ["La casa"]), strict=True)
        assert reasons == (reason,) and (got == expected) is (reason == SPLICED)


def test_characters_that_unicode_composes_are_left_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alpha, a mark below and one above: each pair is right, but NFC joins the first and the last."""
    document = json.loads(zoo.small()["qwen"].backend_tokenizer.to_str())
    spell = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    characters = ("α", "\u0316", "\u0314")
    for character in characters:
        ((token, _),) = spell(character)
        if token not in document["model"]["vocab"]:
            document["model"]["vocab"][token] = 4000 + ord(character)
            document["model"]["merges"].append(list(token))
    tokenizer = wrap(Tokenizer.from_str(json.dumps(document)), eos_token="<|endoftext|>", pad_token=None)
    encode = encoder(tokenizer.backend_tokenizer, specials=False)
    row = [token for part in ("1", *characters, "1") for token in encode([part])[0]]
    assert len(row) == 5 and not canonical(tokenizer, row)
    assert check(fresh(tokenizer), [row]) == [PAIR]
    monkeypatch.setattr(vocabulary, "_composing_characters", frozenset)
    assert check(fresh(tokenizer), [row]) == [PROVED], "without the rule the row comes through"


def test_a_pair_may_not_begin_an_added_token() -> None:
    tokenizer = zoo.small()["gemma"]
    encode = encoder(tokenizer.backend_tokenizer, specials=False)
    row = [token for piece in ("</", "b", ">") for token in encode([piece])[0]]
    assert not canonical(tokenizer, row)
    checker = fresh(tokenizer)
    assert check(checker, [row]) == [PAIR]
    assert {"</", "</b"} <= checker.pairs.vocabulary.added_prefixes
    object.__setattr__(checker.pairs.vocabulary, "added_prefixes", frozenset())
    # Each pair by itself is what the tokenizer writes.
    assert checker.pairs.settle(list(pairwise(row))) == [True] * (len(row) - 1)


def _word_that_wins(word: str) -> Any:
    """Return a tokenizer that has a word which its merges do not lead to, and lets whole words win."""
    document = json.loads(zoo.small()["gpt2"].backend_tokenizer.to_str())
    assert word not in document["model"]["vocab"]
    document["model"]["vocab"][word] = 1 + max(
        *document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])
    )
    document["model"]["ignore_merges"] = True
    return wrap(Tokenizer.from_str(json.dumps(document)), eos_token="<|endoftext|>", pad_token=None)


def test_words_that_win_over_their_merges_are_refused() -> None:
    tokenizer = _word_that_wins("qqxqq")
    checker = fresh(tokenizer)
    row = [tokenizer.convert_tokens_to_ids(letter) for letter in "qqxqq"]
    assert not canonical(tokenizer, row)
    assert checker.pairs.settle(list(pairwise(row))) == [True] * 4
    assert checker.pairs.merge_override_triples_C3.tolist() == [row[:3]]
    # Asked twice: the second time every pair is known, and only the triple is in the way.
    assert check(checker, [row]) == check(checker, [row]) == [PAIR]
    assert not checker.lookup(torch.tensor([row]), torch.tensor([5])).item()
    checker.merge_overrides_K = sorted_table((), torch.device("cpu"))
    assert check(checker, [row]) == [PROVED], "without the rule the row comes through"


def test_what_may_form_across_a_boundary_sends_the_checker_to_the_host() -> None:
    """Three tokens, the template's among them: no look at two of them shows it."""
    gemma = zoo.small()["gemma"]
    tag = TemplateRecipe(kind="plain", prompt="<{source}\n{target_language}: {target}")
    lines = [("The house is red", "La casa es roja")]
    few = compatibility.BuildOptions(num_attacks=100)
    found = compatibility.check_tokenizers(gemma, gemma, tag, ("en", "es"), lines, few)
    assert found.checker != "device" and any("may form out of the template's '<'" in reason for reason in found.reasons)
    assert compatibility.check_tokenizers(gemma, gemma, PLAIN, ("en", "es"), lines, few).checker == "device"
    word = _word_that_wins("qqxqq")
    found = compatibility.check_tokenizers(
        word, word, TemplateRecipe(kind="plain", prompt="q{source}\n{target}"), ("en", "es"), lines, few
    )
    assert found.checker != "device" and any("win over its merges" in reason for reason in found.reasons)


def test_special_unreachable_and_unknown_tokens_are_refused() -> None:
    tokenizer = zoo.small()["gpt2"]
    checker = fresh(tokenizer)
    word = tokenizer("house", add_special_tokens=False)["input_ids"]
    assert check(checker, [word, [*word, tokenizer.eos_token_id]]) == [PROVED, SPECIAL]
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    # The pre-tokenizer cuts at spaces, so that no text becomes this token.
    number = document["model"]["vocab"]["aĠb"] = 1 + max(token["id"] for token in document["added_tokens"]) + 5000
    odd = wrap(Tokenizer.from_str(json.dumps(document)), eos_token="<|endoftext|>", pad_token=None)
    checker = fresh(odd)
    assert (
        checker.pairs.vocabulary.flags_V[number] & vocabulary.BAD
        and len(checker.pairs.vocabulary.flags_V) == number + 1
    )
    assert check(checker, [word, [*word, number]]) == [PROVED, SPECIAL]


@pytest.mark.parametrize("content", ["señor", "Ġx"])
def test_added_tokens_that_decode_as_something_else_are_refused(content: str) -> None:
    """A byte-level decoder takes the letters of an added token for bytes."""
    tokenizer = copy.deepcopy(zoo.small()["gpt2"])
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False)])
    number = tokenizer.convert_tokens_to_ids(content)
    assert tokenizer.decode([number]) != content
    assert check(fresh(tokenizer), [[number]]) == [SPECIAL]


def test_normalizers_that_replace_text_are_beyond_the_rules() -> None:
    tokenizer = copy.deepcopy(zoo.small()["gpt2"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("=c=", "©")
    assert "replaces text" in str(vocabulary.unsupported_reason(tokenizer))
    assert vocabulary.unsupported_reason(zoo.small()["sentencepiece"]) is None


def test_without_sample_lines_nothing_is_trusted() -> None:
    tokenizer = zoo.small()["gpt2"]
    found = compatibility.check_tokenizers(tokenizer, tokenizer, PLAIN, ("en", "es"), [])
    assert found.checker != "device" and any("no sample lines" in reason for reason in found.reasons)


@pytest.mark.parametrize("checker", ["device", "host"])
def test_ids_beyond_the_vocabulary_take_the_text_path(checker: Any) -> None:
    """A model may have more embeddings than its tokenizer has tokens, and sample one of them."""
    tokenizer = zoo.small()["gpt2"]
    forward, reverse = both_templates(tokenizer)
    lines = [("The house is red", "La casa es roja"), ("A new door", "Una puerta")] * 4
    row_builder, _ = compatibility.build_row_builder(
        reverse, forward, lines, compatibility.BuildOptions(checker=checker, num_attacks=50)
    )
    ids, size = _tensors(tokenizer, lines[:2])
    ids[0, 2] = vocabulary.num_ids(tokenizer) + 40
    rows, counts = row_builder.build(ids, size, [target for _, target in lines[:2]])
    assert counts[SPLICED] == 1 and counts.total() == 2
    text = reverse.hypothesis_text(ids[0, : size[0]].tolist())
    assert rows.ids_BT[0, : rows.size_B[0]].tolist() == forward.rows([(text, lines[0][1])])[0].ids


def test_half_a_character_is_never_spliced() -> None:
    used = build(zoo.small()["gpt2"])
    assert used.checker is not None
    texts = used.checker.pairs.vocabulary.texts
    halves = [i for i, text in enumerate(texts) if text in {b"\xc3", b"\xa9", b"\xe5"}]
    assert len(halves) == 3
    first, second = (texts.index(text) for text in (b"\xc3", b"\xa9"))
    rows = [[half] for half in halves] + [[first, first], [second, first], [first, 65], [65, second]]
    assert check(used.checker, rows) == [PAIR] * len(rows)
    reasons, expected, got = zip(*compare_rows(used, rows, ["La casa"] * len(rows)), strict=True)
    assert SPLICED not in reasons and not any(a == b for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("template", ["plain", "chatml-think"])
def test_characters_cut_across_tokens_are_spliced_where_the_host_confirms_them(template: str) -> None:
    """One of the templates ends in two line breaks, which are one token at the end of a prompt and two in a row."""
    used = build(*zoo.dress(zoo.small()["gpt2"], template))
    assert used.checker is not None
    lines = [(line, "La casa") for line in zoo.lines("ja", 60)]
    rows = canonical_hypotheses(used.reverse_template, lines)
    assert check(used.checker, rows).count(PAIR) > 30
    reasons, expected, got = zip(*compare_rows(used, rows, ["La casa"] * len(rows)), strict=True)
    assert reasons.count(SPLICED) >= 0.99 * len(rows) and got == expected


ATTACKED = ["gpt2", "llama3", "qwen", "deepseek", "sentencepiece", "gemma"]


@pytest.mark.parametrize("name", ATTACKED)
def test_attacks_find_no_false_accept(name: str) -> None:
    tokenizer = zoo.small()[name]
    forward, reverse = both_templates(tokenizer)
    english = zoo.lines("en", 150)
    lines = [
        (" ".join(line.split()) or "x", english[i % 150])
        for i, line in enumerate((*zoo.lines("es", 100), *zoo.lines("hi", 50), *zoo.NASTY))
    ]
    row_builder, found = compatibility.build_row_builder(
        reverse, forward, lines, compatibility.BuildOptions(num_attacks=400)
    )
    assert found.checker == "device", found.reasons
    counts, fault = audit_rules(row_builder, lines, 600, 99)
    assert fault is None and counts["false accepts"] == 0
    assert counts["rows"] == 600 and counts["accepted"] > 50 and counts["canonical"] < 600
    # What is refused though it is right: little.
    assert counts["accepted"] >= 0.9 * counts["canonical"]


def test_the_audit_finds_a_checker_that_lets_everything_through(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = zoo.small()["gpt2"]
    forward, reverse = both_templates(tokenizer)
    lines = [("The house is red.", "La casa es roja."), ("A new door", "Una puerta nueva")]
    monkeypatch.setattr(PairRules, "settle", lambda self, pairs: [True] * len(pairs))
    row_builder, found = compatibility.build_row_builder(
        reverse, forward, lines, compatibility.BuildOptions(num_attacks=300)
    )
    assert found.checker == "host" and row_builder.checker is None
    assert "the audit found a row that the rules let through" in found.reasons[0]
    assert found.attacks["false accepts"] > 0
    # The checker on the host does not need the rules.
    rows, counts = row_builder.build(*_tensors(tokenizer, lines), [target for _, target in lines])
    assert counts == {SPLICED: 2}


def _tensors(tokenizer: Any, lines: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [tokenizer(f" {source}", add_special_tokens=False)["input_ids"] for source, _ in lines]
    width = max(map(len, rows))
    return torch.tensor([[*r, *(width - len(r)) * [0]] for r in rows]), torch.tensor([len(r) for r in rows])


@pytest.mark.parametrize("name", ["unigram", "wordpiece", "nfkc", "lowercase"])
def test_tokenizers_beyond_the_rules_are_checked_on_the_host(name: str) -> None:
    tokenizer = zoo.small()[name]
    forward, reverse = both_templates(tokenizer)
    english = zoo.lines("en", 60)
    lines = [(line, english[i]) for i, line in enumerate(zoo.lines("es", 60))]
    row_builder, found = compatibility.build_row_builder(reverse, forward, lines)
    assert found.checker == "host" and row_builder.tensors is not None
    assert any(str(vocabulary.unsupported_reason(tokenizer)) in reason for reason in found.reasons)
    assert 0 < found.counts[SPLICED] <= 60


def test_contexts_hold_each_kind_of_neighbour() -> None:
    assert len(set(rules.CONTEXTS)) == len(rules.CONTEXTS) >= 12
    kinds = {"".join(sorted({c.isalpha() and "a" or c.isdigit() and "1" or "."})) for c in rules.CONTEXTS if c}
    assert kinds == {"a", "1", "."}
