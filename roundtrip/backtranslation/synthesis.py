"""Synthesis of training examples: real lines are taken, translated by the reverse direction, filtered and mixed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from roundtrip.backtranslation import examples, filtering
from roundtrip.backtranslation.checkpoint import State
from roundtrip.backtranslation.context import RunContext
from roundtrip.backtranslation.early_stopping import require_better_than_copy
from roundtrip.backtranslation.examples import PhaseExamples, Streams
from roundtrip.backtranslation.filtering import Candidate, FilteredCandidates
from roundtrip.backtranslation.replay import replayed_examples
from roundtrip.recipe.plan import Phase
from roundtrip.recipe.sampling_schedule import describe_sampling, sampling_settings
from roundtrip.recipe.schema import Generate
from roundtrip.runtime.prefetch import Prefetcher
from roundtrip.runtime.seeding import derive_seed

# Rejected candidates, spread over all, that are shown where all are rejected.
NUM_SAMPLES = 5


@dataclass(frozen=True)
class TakenLines:
    """The real lines that a round starts from, the streams of which they are, and how sources are generated."""

    lines: list[str]
    streams: Streams
    num_too_long: int
    settings: Generate


class Synthesizer:
    """Makes the examples of a phase; each method takes what the one before it returned."""

    def __init__(self, context: RunContext, phases: Sequence[Phase]) -> None:
        self.context, self.recipe, self.events, self.phases = context, context.recipe, context.events, phases
        self.prefetcher = Prefetcher()

    def real_examples(self, phase: Phase, state: State) -> PhaseExamples:
        """Return all parallel pairs, or monolingual lines for a model from scratch."""
        if phase.parallel:
            pairs = examples.parallel_examples(self.context.corpora.train, phase.direction, self.recipe)
            return PhaseExamples(pairs, {})
        streams = self._streams(state)
        return PhaseExamples(streams.monolingual(phase), streams.after, streams.restarted())

    def take_lines(self, phase: Phase, state: State) -> TakenLines:
        """Take the next lines of the target language."""
        if phase.round == 1:
            require_better_than_copy(self.recipe, state.scores, self.context.resume_command)
        reverse = phase.direction.reverse.name
        chrf = None if self.recipe.without_dev else list(state.scores.values())[-1][reverse]["chrf"]
        settings = sampling_settings(self.recipe.generate, chrf)
        self.events.say(f"  {describe_sampling(self.recipe.generate, settings, reverse, chrf)}")
        # Before anything asks for their ids, so that no line is encoded twice.
        self.encode_ahead(phase, state)
        self.prefetcher.wait()
        streams = self._streams(state)
        lines = streams.lines(phase)
        short = examples.short_lines(lines, self.recipe, settings, self.context.translators[reverse])
        return TakenLines(short, streams, len(lines) - len(short), settings)

    def translate(self, phase: Phase, taken: TakenLines) -> list[Candidate]:
        """Let the reverse direction generate sources for lines; those of one line stand next to each other."""
        context, settings, reverse = self.context, taken.settings, phase.direction.reverse.name
        num_lines, seed = self.recipe.rounds.monolingual_lines, derive_seed(self.recipe.seed, "sources", phase.number)
        template = context.row_builders[phase.direction.name].reread_template
        with self.events.task("generating", f"{phase.stage}: {reverse} generates sources", num_lines) as task:
            translations = context.translators[reverse].translate(
                taken.lines, settings, seed, reread_with=template, callbacks=context.callbacks(task)
            )
        hypotheses, row_starts = translations.hypotheses, translations.row_starts
        logprobs = hypotheses.per_token() if hypotheses.logprob_B is not None else None
        sizes = hypotheses.size_B.tolist()
        candidates = []
        for i, (text, finished) in enumerate(zip(translations.texts, translations.finished, strict=True)):
            line, ids_N = i // settings.num_candidates, hypotheses.ids_BN[i, : sizes[i]]
            logprob = None if logprobs is None else logprobs[i]
            row_start = None if row_starts is None else row_starts[i]
            candidates.append(Candidate(line, text, taken.lines[line], finished, ids_N, logprob, row_start))
        return candidates

    def filter(self, phase: Phase, candidates: Sequence[Candidate]) -> FilteredCandidates:
        """Reject bad candidates, counted by reason."""
        corpora, rules = self.context.corpora, self.context.filters.get(phase.direction.name, ())
        pairs = corpora.train if self.recipe.without_dev else corpora.dev
        length_ratio = examples.usual_length_ratio(pairs, self.recipe, phase.direction)
        return filtering.filter_candidates(candidates, self.recipe.filter, length_ratio=length_ratio, filters=rules)

    def select(self, phase: Phase, taken: TakenLines, filtered: FilteredCandidates) -> FilteredCandidates:
        """Select one candidate of each line, or all, and reject those that the forward direction cannot restore."""
        forward, settings = self.context.translators[phase.direction.name], taken.settings
        kept, method, callbacks = filtered.kept, settings.candidate_selection, self.context.callbacks()
        if settings.num_candidates > 1 and method != "all" and kept:
            if method == "likelihood":
                # Per token, so that short ones gain nothing.
                scores = [candidate.logprob for candidate in kept if candidate.logprob is not None]
            else:
                # Dual learning (https://arxiv.org/abs/1611.00179) as a criterion: the likelihood of the real line.
                pairs = [(candidate.source, candidate.target) for candidate in kept]
                max_tokens = self.recipe.train.max_tokens_per_microbatch
                scores = forward.likelihoods(pairs, max_tokens, callbacks.on_progress)
            filtered = FilteredCandidates(filtering.select_candidates(kept, scores), filtered.rejected)
        lowest = self.recipe.filter.min_round_trip_chrf
        if lowest and filtered.kept:
            chrf = filtering.round_trip_chrf(forward, filtered.kept, settings, callbacks)
            filtered = filtered.without([value < lowest for value in chrf], "low_round_trip")
        return filtered

    def mix(
        self, phase: Phase, taken: TakenLines, made: list[Candidate], selected: FilteredCandidates
    ) -> PhaseExamples:
        """Mix replayed, parallel and denoising examples with the selected candidates."""
        streams, folder, num_candidates = taken.streams, self.context.run.examples, len(made) + taken.num_too_long
        replayed = replayed_examples(folder, self.phases, phase, self.recipe.rounds.replay_examples)
        mixed = examples.mix(phase, streams, selected.kept, replayed)
        rejected = selected.rejected + Counter({examples.TARGET_TOO_LONG: taken.num_too_long})
        samples = [] if selected.kept else made[:: max(1, len(made) // NUM_SAMPLES)][:NUM_SAMPLES]
        return PhaseExamples(mixed, streams.after, streams.restarted(), rejected, num_candidates, samples)

    def encode_ahead(self, phase: Phase, state: State) -> None:
        """Start a thread that encodes the real text that a round will read, unless it is encoded already."""
        streams, translators = self._streams(state), self.context.translators
        reverse, forward = translators[phase.direction.reverse.name], translators[phase.direction.name]

        def encode() -> None:
            lines = streams.lines(phase)
            pairs = streams.pairs(phase, len(lines))
            reverse.template.expect(sources=lines)
            forward.template.expect(targets=lines, pairs=[(example.source, example.target) for example in pairs])

        self.prefetcher.start(phase.number, encode)

    def _streams(self, state: State) -> Streams:
        return Streams(self.recipe, self.context.corpora, state.cursors)
