"""How many human translations keep the placeholders of their source, and how often the filter rejects sources.

    python -m benchmarks.placeholders [RUN ...]

Human translations are those of dev and test of the recipes of software strings, and of all languages in their packages;
synthetic sources are those that finished runs have trained on, most usefully of versions without this filter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from roundtrip import load_recipe
from roundtrip.data.corpora import prepare
from roundtrip.data.placeholders import differences, errors, has_placeholders
from roundtrip.data.readers import read_rows
from roundtrip.recipe.schema import TextSource
from roundtrip.runtime.downloads import resolve
from roundtrip.runtime.errors import RoundtripError

RECIPES = ("software-strings", "software-strings-de", "software-strings-fr")


def describe(pairs: Iterable[tuple[str, ...]]) -> str:
    """Return how many pairs have placeholders, how many have errors, and how many differ in each kind."""
    rows = list(pairs)
    with_any, broken = [row for row in rows if has_placeholders(row[0])], [row for row in rows if errors(*row)]
    of_those = sum(has_placeholders(row[0]) for row in broken)
    kinds = Counter(each.kind.value for row in rows for each in differences(*row))
    shares = f"{len(broken)} of {len(rows)} with errors, {of_those} of {len(with_any)} with placeholders in the source"
    return f"{shares}; {dict(kinds.most_common())}"


def all_languages() -> set[tuple[str, ...]]:
    """Return the pairs of English and every other language in the packages of the recipes."""
    names = [name for _, source, _ in load_recipe(RECIPES[0]).recipe.sources() for name in source.paths]
    pairs: set[tuple[str, ...]] = set()
    for file in (file for name in names for file in resolve(name.replace("/es/", "/*/"), Path())):
        language = file.parts[-3].replace("_", "-").replace("@", "-")
        try:
            pairs.update(read_rows(TextSource(path=str(file)), [file], ("en", language)))
        except RoundtripError:  # a variety of English, or a header of another language
            continue
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    console = Console(soft_wrap=True, highlight=False)
    for run in parser.parse_args().runs:
        for file in sorted((run / "examples").glob("*.jsonl")):
            examples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            sources = [(target, source) for kind, source, target in examples if kind == "synthetic"]
            console.print(f"{file}: {describe(sources)}")
    for name in RECIPES:
        loaded = load_recipe(name)
        with tempfile.TemporaryDirectory() as folder:
            corpora = prepare(loaded.recipe, loaded.folder, Path(folder), lambda line: None)
            for part in ("train", "dev", "test"):
                console.print(f"{name}, {part}: {describe(getattr(corpora, part))}")
    console.print(f"all languages: {describe(all_languages())}")


if __name__ == "__main__":
    main()
