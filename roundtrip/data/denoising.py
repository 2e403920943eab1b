"""Noise for the source of a denoising autoencoder: dropped and shuffled words."""

import random

# Lample et al. 2018 (https://arxiv.org/abs/1711.00043), section 2.2: the probability of dropping a word, and the number
# of positions that a word may move.
DROPPED = 0.1
MOVED = 3


def add_noise(text: str, seed: int) -> str:
    """Drop some words of a text and shuffle the others locally; at least one word is kept.

    In text without spaces, characters are treated as words.
    """
    rng = random.Random(seed)
    separator = " " if " " in text else ""
    words = text.split() if separator else list(text)
    kept = [word for word in words if rng.random() >= DROPPED] or words[:1]
    positions = [index + rng.uniform(0, MOVED + 1) for index in range(len(kept))]
    return separator.join(word for _, word in sorted(zip(positions, kept, strict=True), key=lambda pair: pair[0]))
