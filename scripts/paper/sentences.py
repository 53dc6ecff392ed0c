"""A sequence-to-sequence model as a distribution over sentences that is known exactly.

A sentence is 1 to `longest` words and an end. At its first place the end is not allowed, and a
sentence of `longest` words ends there with probability 1, so that sampling that stops there draws
from exactly this distribution. Words are the tokenizer's, without its special tokens and without
the source's own word; what is forbidden has probability 0 and the rest is normalised anew.

Every token counts but an end that was forced.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvd_gen.data.batches import pad
from tvd_gen.metrics.distances import TokenDistances, token_distances
from tvd_gen.models import ModelSpec, load_model
from tvd_gen.models.lstm import CACHE
from tvd_gen.trainer import target_logits

GO = "<go>"
"""the source of every sentence"""
FORBIDDEN = -1e4  # its exp is 0, and differences of two such logits stay finite
IGNORE = -100
SAMPLED_ROWS, SCORED_TOKENS = 500, 512  # in one batch: its logits stay near the processor

Ids = list[int]


@dataclass(frozen=True)
class Samples:
    """Sentences that a model has drawn."""

    rows: list[Ids]
    """words, without the end"""
    logp: Tensor
    """(N,) float64, under the model itself"""


class SentenceModel:
    """The distribution of a model; it changes the head's bias to forbid what is no word."""

    def __init__(self, model: Any, tokenizer: Any, longest: int):
        self.model, self.tokenizer, self.longest = model.eval(), tokenizer, longest
        (go,) = tokenizer(GO)["input_ids"]
        self.end = tokenizer.eos_token_id
        never = {*tokenizer.all_special_ids, go} - {self.end}
        with torch.no_grad():
            model.get_output_embeddings().bias[sorted(never)] = FORBIDDEN
        self.source = torch.tensor([go, self.end])

    @classmethod
    def load(cls, folder: str, longest: int) -> "SentenceModel":
        """Of a run's model."""
        spec = ModelSpec(pretrained=folder)
        return cls(*load_model(spec, texts=None, seed=0, say=lambda _: None), longest)

    def text(self, row: Ids) -> str:
        """A sentence's words with blanks between them."""
        return " ".join(self.tokenizer.convert_ids_to_tokens(row))

    def ids(self, text: str) -> Ids:
        """A sentence's words as ids."""
        found: Ids = self.tokenizer(text)["input_ids"]
        return found

    def tokens(self, rows: Sequence[Ids]) -> int:
        """How many tokens the sentences have: words and ends that were not forced."""
        return sum(min(len(row) + 1, self.longest) for row in rows)

    @torch.no_grad()
    def sample(self, count: int, seed: int) -> Samples:
        """Draw sentences, each by itself; the seed alone decides which."""
        random = torch.Generator().manual_seed(seed)
        rows: list[Ids] = []
        logps = []
        for start in range(0, count, SAMPLED_ROWS):
            made, logp = self._draw(min(SAMPLED_ROWS, count - start), random)
            rows += [[each for each in row if each != self.end] for row in made.tolist()]
            logps.append(logp)
        return Samples(rows, torch.cat(logps))

    def _draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        made = torch.full((count, self.longest), self.end)
        logp = torch.zeros(count, dtype=torch.float64)
        going, state = torch.arange(count), None
        word = torch.full((count,), self.model.config.decoder_start_token_id)
        for step in range(self.longest):
            output = self.model(
                input_ids=self.source.expand(len(going), -1),
                decoder_input_ids=word.unsqueeze(1),
                cache=state,
                use_cache=True,
            )
            logits, state = output.logits[:, -1], output[CACHE]
            if step == 0:
                logits[:, self.end] = FORBIDDEN
            logps = logits.log_softmax(1)
            drawn = _drawn(logps.exp(), random)
            logp[going] += logps.gather(1, drawn).squeeze(1).double()
            word = drawn.squeeze(1)
            made[going, step] = word
            kept = (word != self.end).nonzero().squeeze(1)  # the ended ones cost nothing more
            if not len(kept):
                break
            going, word = going[kept], word[kept]
            state.reorder_cache(kept)
        return made, logp

    @torch.no_grad()
    def logp(self, rows: Sequence[Ids]) -> Tensor:
        """(N,) float64: the log-probability of each sentence."""
        total = torch.zeros(len(rows), dtype=torch.float64)
        for owners, logits, targets in self._logits(rows):
            logp = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
            total.index_add_(0, owners, logp.double())
        return total

    def perplexity(self, rows: Sequence[Ids], logp: Tensor) -> float:
        """exp of the mean -log p of a token; it stops at exp(700), to stay a JSON number."""
        return math.exp(min(-float(logp.sum()) / self.tokens(rows), 700.0))

    def _logits(self, rows: Sequence[Ids]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(N,) rows, (N, V) logits and (N,) targets of all their tokens, batch by batch."""
        for places in _batches(rows):
            targets = [self._target(rows[place]) for place in places]
            labels = pad(targets, IGNORE)
            source = self.source.expand(len(places), -1)
            logits, kept = target_logits(self.model, {"input_ids": source, "labels": labels})
            row, step = (labels != IGNORE).nonzero().unbind(1)
            logits[step == 0, self.end] = FORBIDDEN
            yield torch.tensor(places)[row], logits, kept

    def _target(self, row: Ids) -> Ids:
        return row if len(row) == self.longest else [*row, self.end]


def _drawn(p: Tensor, random: torch.Generator) -> Tensor:
    """(N, V) probabilities -> (N, 1) a word of each row; torch.multinomial, five times as fast.

    In float64: in float32 the rarest words, at the end of the sum, would never be drawn.
    """
    sums = p.cumsum(1, dtype=torch.float64)
    heights = torch.rand(len(p), 1, dtype=torch.float64, generator=random) * sums[:, -1:]
    return torch.searchsorted(sums, heights, right=True).clamp_(max=p.shape[1] - 1)


def _batches(rows: Sequence[Ids]) -> Iterator[list[int]]:
    """Places of rows of like length, longest first, about SCORED_TOKENS together."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    while order:
        size = max(1, SCORED_TOKENS // (len(rows[order[0]]) + 1))
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def compare(p: SentenceModel, q: SentenceModel, rows: Sequence[Ids]) -> TokenDistances:
    """The mean distances of p's and q's next-token distributions, after every prefix of the rows.

    () each, float64. Nothing is sampled: all words are summed over.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    pairs = zip(p._logits(rows), q._logits(rows), strict=True)
    for (_, logits_p, _), (_, logits_q, _) in pairs:
        distances = token_distances(logits_p.log_softmax(1), logits_q.log_softmax(1))
        sums += torch.stack([each.double().sum() for each in distances])
    return TokenDistances(*sums / p.tokens(rows))
