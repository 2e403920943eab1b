"""Splice and text path side by side: rows made both ways, on lines and under attack.

Adversarial rows spell a text in other tokens than the tokenizer would, as a model that samples does at times.
"""

import random
from collections.abc import Iterator, Sequence

import torch

from roundtrip.tokens.prompt_template import PromptTemplate, TokenRow
from roundtrip.tokens.row_builder import SPLICED, RowBuilder, first_difference, ragged
from roundtrip.tokens.splice.pair_rules import OnProgress, silent
from roundtrip.tokens.splice.vocabulary import TokenVocabulary

_ROWS_AT_ONCE = 256
_LONGEST = 24  # bytes of a token that an attack looks for
_KINDS = ("token", "span", "span", "whole", "foreign", "odd", "joined", "framed", "cut")
_BLANKS = (b" ", b"\n", b"  ", b".\n", b"\n\n")


def audit_rules(
    row_builder: RowBuilder, lines: Sequence[tuple[str, str]], number: int, seed: int, on_progress: OnProgress = silent
) -> tuple[dict[str, int], str | None]:
    """Attack the device checker with rows whose text is spelt in other tokens than the tokenizer's.

    Returns the numbers of all rows, those accepted, those canonical by the text path, and those accepted though they
    are not; and a description of the first of the last kind.
    """
    assert row_builder.checker is not None
    canonical = canonical_hypotheses(row_builder.reverse_template, lines)
    targets = [target for _, target in lines]
    attacked = list(AdversarialRows(row_builder.checker.pairs.vocabulary, seed).rows(canonical, number))
    on_progress("attacking the checker", 0, len(attacked))
    made = compare_rows(row_builder, attacked, [targets[i % len(targets)] for i in range(len(attacked))])
    rows = zip(attacked, made, strict=True)
    accepted = [(ids, expected, actual) for ids, (reason, expected, actual) in rows if reason == SPLICED]
    wrong = [(ids, expected, actual) for ids, expected, actual in accepted if actual != expected]
    num_canonical = sum(actual == expected for _, expected, actual in made)
    counts = {"rows": len(made), "accepted": len(accepted), "canonical": num_canonical, "false accepts": len(wrong)}
    if not wrong:
        return counts, None
    ids, expected, actual = wrong[0]
    what = first_difference(row_builder.forward_template.tokenizer, actual.ids, expected.ids)
    return counts, f"the audit found a row that the rules let through: {ids}: {what}"


def compare_rows(
    row_builder: RowBuilder, hypotheses: Sequence[Sequence[int]], targets: Sequence[str]
) -> list[tuple[str, TokenRow, TokenRow]]:
    """Return for each row SPLICED or the reason against it, the text path's row, and the spliced one, proved or not."""
    assert row_builder.tensors is not None
    made: list[tuple[str, TokenRow, TokenRow]] = []
    for start in range(0, len(hypotheses), _ROWS_AT_ONCE):
        some, some_targets = hypotheses[start : start + _ROWS_AT_ONCE], targets[start : start + _ROWS_AT_ONCE]
        ids_BN, length_B = ragged(some, row_builder.tensors.head_H.device, row_builder.tensors.pad_id)
        size_B = torch.minimum(row_builder.find_ends(ids_BN)[0], length_B)
        sized = zip(some, size_B.tolist(), strict=True)
        texts = [row_builder.reverse_template.hypothesis_text(ids[:size]) for ids, size in sized]
        expected = row_builder.forward_template.rows(list(zip(texts, some_targets, strict=True)))
        rows, reasons = row_builder.splice(ids_BN, size_B, some_targets, texts)
        made += zip(reasons, expected, rows.to_rows(range(len(some))), strict=True)
    return made


def canonical_hypotheses(reverse_template: PromptTemplate, lines: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return the ids of each pair's source as the reverse direction would generate it."""
    rows = reverse_template.rows([(target, source) for source, target in lines])
    return [row.ids[row.start : -1] for row in rows]


class AdversarialRows:
    """Makes adversarial rows for one vocabulary."""

    def __init__(self, vocabulary: TokenVocabulary, seed: int) -> None:
        self._texts = vocabulary.texts
        self._by_text = {text: number for number, text in enumerate(vocabulary.texts) if text and len(text) <= _LONGEST}
        self._tokens = sorted(self._by_text.values())
        # Tokens that are rare among all and seldom harmless: added ones, and white space.
        added = {content.encode("utf-8") for content in vocabulary.added}
        self._odd = [i for i, text in enumerate(vocabulary.texts) if text and (not text.strip() or text in added)]
        self._random = random.Random(seed)

    def rows(self, canonical: Sequence[Sequence[int]], number: int) -> Iterator[list[int]]:
        """Yield rows: a token, a span or all of a row respelt, foreign and odd tokens, pieces of two rows."""
        rows = [list(row) for row in canonical if row]
        for count in range(number if rows else 0):
            yield self._changed(_KINDS[count % len(_KINDS)], list(self._random.choice(rows)), rows)

    def _changed(self, kind: str, row: list[int], rows: list[list[int]]) -> list[int]:
        chance, size = self._random, len(row)
        match kind:
            case "token" | "span":
                start = chance.randrange(size)
                return self._respelt(row, start, start + (1 if kind == "token" else chance.randint(2, 5)))
            case "whole":
                return self._respelt(row, 0, size)
            case "foreign" | "odd":
                start = chance.randrange(size + 1)
                tokens = self._odd if kind == "odd" and self._odd else self._tokens
                return [*row[:start], chance.choice(tokens), *row[start:]]
            case "joined":
                other = chance.choice(rows)
                return row[: chance.randint(1, size)] + other[chance.randrange(len(other)) :]
            case "framed":  # by a token of any kind at either end, white space and line breaks among them
                blanks = [self._by_text[text] for text in _BLANKS if text in self._by_text]
                token = chance.choice([*blanks, chance.choice(self._tokens)])
                return [token, *row] if chance.random() < 0.5 else [*row, token]
            case _:  # cut out
                start = chance.randrange(size)
                return row[start : start + chance.randint(1, 8)]

    def _respelt(self, row: list[int], start: int, end: int) -> list[int]:
        pieces = [self._texts[token] for token in row[start:end]]
        new = [] if None in pieces else self._split(b"".join(piece for piece in pieces if piece))
        return [*row[:start], *new, *row[end:]] if new else row

    def _split(self, text: bytes) -> list[int]:
        """Return random tokens that spell these bytes; empty where none do."""
        tokens: list[int] = []
        start = 0
        while start < len(text):
            ends = range(start + 1, min(len(text), start + _LONGEST) + 1)
            ends_of_tokens = [end for end in ends if text[start:end] in self._by_text]
            if not ends_of_tokens:
                return []
            end = self._random.choice(ends_of_tokens)
            tokens.append(self._by_text[text[start:end]])
            start = end
        return tokens
