"""Text with its words disturbed, as the source of a denoising autoencoder."""

from __future__ import annotations

import random

# Of https://arxiv.org/abs/1711.00043, section 2.2: the share of words that are dropped, and how far one may move.
DROPPED = 0.1
MOVED = 3


def add_noise(text: str, seed: int) -> str:
    """Return a text without some of its words, the others a little out of order; at least one word stays.

    Text without spaces is disturbed by its characters.
    """
    chance = random.Random(seed)
    between = " " if " " in text else ""
    words = text.split() if between else list(text)
    kept = [word for word in words if chance.random() >= DROPPED] or words[:1]
    places = [place + chance.uniform(0, MOVED + 1) for place in range(len(kept))]
    return between.join(word for _, word in sorted(zip(places, kept, strict=True), key=lambda pair: pair[0]))
