"""At which temperature a direction generates the synthetic sources of a round."""

from roundtrip.recipe.schema import Generate

# `temperature = "auto"` samples at this temperature once the generating direction reaches this chrF++ on dev.
SAMPLING_TEMPERATURE = 0.7
SAMPLING_MIN_CHRF = 40.0


def sampling_settings(generate: Generate, dev_chrf: float | None) -> Generate:
    """Return the settings of a direction that generates, with a temperature that is a number.

    Sampled sources are more varied and give better models, but only if the model that generates them is good enough;
    those of a weak model are noise, and greedy search gives better models (https://arxiv.org/abs/1808.09381, sections
    4.2 and 5.3). `dev_chrf` is the direction's chrF++ on dev after the last stage, None without dev pairs.
    """
    temperature = generate.temperature
    if temperature == "auto":
        temperature = SAMPLING_TEMPERATURE if (dev_chrf or 0.0) >= SAMPLING_MIN_CHRF else 0.0
    # Greedy candidates of one line are all the same.
    num_candidates = generate.num_candidates if temperature else 1
    return generate.model_copy(update={"temperature": temperature, "num_candidates": num_candidates})


def describe_sampling(generate: Generate, settings: Generate, direction: str, dev_chrf: float | None) -> str:
    """Return in a few words how a direction generates, and why; `settings` are those of `sampling_settings`."""
    temperature = settings.temperature_value
    text = f"{direction} samples at temperature {temperature:g}" if temperature else f"{direction} uses greedy search"
    if settings.num_candidates > 1:
        text += f", {settings.num_candidates} candidates per line"
    if generate.temperature != "auto":
        return text
    if dev_chrf is None:
        return f"{text}: without dev pairs its quality is unknown"
    relation = "below" if dev_chrf < SAMPLING_MIN_CHRF else "at least"
    return f"{text}: its dev chrF++ {dev_chrf:.1f} is {relation} {SAMPLING_MIN_CHRF:g}"
