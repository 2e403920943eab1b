"""How the sources of one round are written: what the recipe says, changed by round and direction, and by how good
the writer is."""

from __future__ import annotations

from roundtrip.recipe.schema import Generate


def sampling_settings(generate: Generate, writer: str, number: int, dev_chrf: float | None) -> Generate:
    """Return how a direction writes in a round.

    Sampled sources are more varied and teach more once the writer is good; those of a weak one are noise, and greedy
    search, its best guess, teaches more (https://arxiv.org/abs/1808.09381, sections 4.2 and 5.3).

    Args:
        generate: of the recipe.
        writer: name of the direction that writes.
        number: of the round, from 1.
        dev_chrf: chrF++ of the writer on dev after the last stage; None where there are no dev pairs.

    Returns:
        Settings with a temperature that is a number, and without changes.
    """
    found = requested_settings(generate, writer, number)
    heat = found.heat
    if found.temperature == "auto" and dev_chrf is not None and dev_chrf >= found.sampling_min_chrf:
        heat = found.sampling_temperature
    # Greedy ones of one line are all the same.
    samples = found.num_candidates if heat else 1
    return found.model_copy(update={"temperature": heat, "num_candidates": samples, "change": ()})


def requested_settings(generate: Generate, writer: str, number: int) -> Generate:
    """Return what the recipe says of a direction that writes in a round, `auto` and all."""
    found = generate
    for change in sorted(generate.overrides, key=lambda change: change.round):
        if change.round <= number and change.direction in {None, writer}:
            found = found.model_copy(update=change.model_dump(exclude={"round", "direction"}, exclude_none=True))
    return found.model_copy(update={"change": ()})


def describe_sampling(said: Generate, taken: Generate, writer: str, dev_chrf: float | None) -> str:
    """Return what was taken and why, in a few words.

    Args:
        said: see `asked`.
    """
    how = f"samples at temperature {taken.heat:g}" if taken.heat else "writes greedily"
    if taken.num_candidates > 1:
        how += f", {taken.num_candidates} of each line"
    if dev_chrf is None:
        return f"{writer} {how}" + (": no dev pairs tell how warm it is" if said.temperature == "auto" else "")
    warm = "below" if dev_chrf < said.sampling_min_chrf else "at or above"
    why = f": its dev chrF++ {dev_chrf:.1f} is {warm} generate.sampling_min_chrf {said.sampling_min_chrf:g}"
    return f"{writer} {how}{why if said.temperature == 'auto' else ''}"
