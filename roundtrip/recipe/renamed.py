"""Keys of earlier recipes: what they are called now, or why they are gone. They only improve error messages."""

from roundtrip.runtime.errors import did_you_mean

# Those whose new name `did_you_mean` does not find by itself.
RENAMED = {
    "data.cut": "data.split",
    "judge": "filter",
    "score": "evaluation",
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

_SCHEDULE = "generate.temperature = 'auto' samples at 0.7 once dev chrF++ is 40"
_LINEAR = "the learning rate always falls linearly, to a tenth, after the warmup"
_DATASET = "write it into the path: hf:DATASET#subset=NAME&split=NAME"
REMOVED = {
    "model.scratch": "generation uses a merged copy unless the base is quantized",
    "model.from_scratch.heads": "an attention head always has the size 64 now",
    "model.from_scratch.positions": "it is train.max_length now, at least 512",
    "template.synthetic_tag": "synthetic rows have the prompt of all others",
    "data.filter.max_ratio": "it is always 4 now",
    "adapter.layers": "name the layers in adapter.targets",
    "adapter.lr": "use train.lr",
    "adapter.dtype": "it is always that of the model now",
    "train.max_grad_norm": "it is always 1 now",
    "train.schedule": _LINEAR,
    "train.lr_schedule": _LINEAR,
    "train.packing": "rows are packed where the attention kernel allows it",
    "train.synthetic_weight": "all rows have the same weight",
    "train.label_smoothing": "it is always 0 now",
    "train.ema_decay": "weights are not averaged",
    "train.max_skipped": "it is always 10 now",
    "generate.change": "settings are the same in all rounds",
    "generate.warm_chrf": _SCHEDULE,
    "generate.warm_temperature": _SCHEDULE,
    "generate.length_extra": "it is always 10 now",
    "generate.min_p": "use generate.top_p",
    "generate.top_k": "use generate.top_p",
    "generate.repetition_penalty": "it is always 1 now",
    "tokens.guard": "rows are checked on the device, and on the host where that cannot decide",
    "tokens.strict": "use tokens.mode = 'splice', which stops at a row that cannot be spliced",
    "filter.max_copy": "it is always 80 now",
    "filter.max_repeats": "it is always 4 now",
    "evaluation.round_trip_lines": "it is always 200 now",
    "evaluation.bootstrap_samples": "it is always 1000 now",
    "checkpoint.full_disk": "a run always ends where the disk is full",
}
_OF_SOURCES = {"header": "names in columns imply a header line", "subset": _DATASET, "split": _DATASET}


def explain_unknown_key(key: str, known: list[str], *, of_source: bool = False) -> str:
    """Return why a key (`train.stall`, without the name of a direction) does not exist, and what to write instead.

    Its table may hold the names `known`; `of_source` says whether this table is a text source.
    """
    name = key.rpartition(".")[2]
    if removed := _OF_SOURCES.get(name) if of_source else REMOVED.get(key):
        return f"this key was removed: {removed}"
    if key in RENAMED:
        return f"unknown key; did you mean '{RENAMED[key]}'?"
    return f"unknown key; {did_you_mean(name, known)}"
