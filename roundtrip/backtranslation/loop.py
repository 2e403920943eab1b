"""The round trip: two directions write each other's sources, and each learns to give back real text."""

from __future__ import annotations

from roundtrip.backtranslation.trainer import Trainer


def round_trip(trip: Trainer) -> None:
    """Train both directions from where `trip.state` stands to the end of its recipe, then score the test set.

    A phase is one block of one direction: it reads real target lines, has the reverse direction write their
    sources, judges these, mixes real pairs in, and learns from the lot in one pass. Everything random in it is
    derived from the seed and the phase, so that a run which was stopped goes on as if it had not been.
    """
    if trip.state.best is None:
        trip.begin()
    while (phase := trip.phase()) is not None:
        block = trip.block(phase)
        rows = trip.encode(block, phase)
        with trip.training(phase, rows) as progress:
            for number, group in enumerate(trip.steps(rows, phase)):
                if number < trip.state.step:
                    continue
                result = trip.step(phase, rows, group)
                progress.advance(1, result.num_tokens, f"loss {result.loss:.3f}")
                if trip.save_due():
                    trip.save()
                trip.stop_if_asked()
        trip.save()
        if trip.finish(phase, block):
            trip.end_stage(phase)
        trip.save()
        trip.stop_if_asked()
    trip.score_test()
