"""Keys of earlier recipes, and what they are called now; these names only improve error messages."""

from roundtrip.runtime.errors import did_you_mean

# Those whose new name `did_you_mean` does not find by itself.
RENAMED = {
    "data.cut": "data.split",
    "judge": "filter",
    "model.liger": "model.use_liger_kernel",
    "model.from_scratch.width": "model.from_scratch.hidden_size",
    "template.text": "template.prompt",
    "template.instruction": "template.prompt",
    "train.rows_per_step": "train.batch_size",
    "train.max_row_tokens": "train.max_length",
    "train.stall": "train.patience",
    "rounds.number": "rounds.count",
    "rounds.lines": "rounds.monolingual_lines",
    "rounds.real_share": "rounds.parallel_ratio",
    "rounds.reservoir": "rounds.replay_examples",
    "rounds.noised_share": "rounds.denoising_ratio",
    "rounds.patience": "train.patience",
    "rounds.warm_start": "rounds.require_better_than_copy",
    "generate.samples": "generate.num_candidates",
    "generate.choose": "generate.candidate_selection",
}


def explain_unknown_key(key: str, known: list[str]) -> str:
    """Return what to write instead of a key (`train.stall`, without the name of a direction) that does not exist.

    Its table may hold the names `known`.
    """
    if key in RENAMED:
        return f"unknown key; did you mean '{RENAMED[key]}'?"
    return f"unknown key; {did_you_mean(key.rpartition('.')[2], known)}"
