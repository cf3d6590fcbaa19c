"""Prompts followed by their answers, how a language model reads them, and the log-probabilities of the answers.

Where the model packs sequences, those that begin alike (the prompts of one question: instructions, question, perhaps
the same first passages) are read together, and what they begin with once. Elsewhere each is a row, padded on the right.

Legend: B sequences, T tokens that are read, N selected positions, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generator.language_model import LanguageModel
from generator.log_probs import answer_positions, sum_per_row, token_log_probs, token_log_probs_in_chunks
from generator.packed_sequences import PackedSequences
from generator.padding import pad_right
from indexes.batching import token_budget_batches


@dataclass(frozen=True)
class AnswerSequence:
    """A prompt and an answer to it, as the generator reads them: `prompt_ids + answer_ids`."""

    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def input_ids(self) -> list[int]:
        """All token ids."""
        return self.prompt_ids + self.answer_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class ReadSequences:
    """Sequences after a forward pass."""

    sequences: Sequence[AnswerSequence]
    hidden_TH: Tensor
    """Last hidden states of everything that was read."""
    places: Sequence[Tensor]
    """Of each sequence, where in `hidden_TH` each of its tokens is."""

    def hidden_at(self, sequences_N: Tensor, positions_N: Tensor) -> Tensor:
        """Hidden states `[N, H]` at some positions of some sequences."""
        lengths_B = torch.tensor([len(places) for places in self.places], device=positions_N.device)
        starts_B = torch.cumsum(lengths_B, 0) - lengths_B
        places = torch.cat(list(self.places)).to(positions_N.device)
        return self.hidden_TH[places[starts_B[sequences_N] + positions_N]]

    @property
    def prompt_lengths_B(self) -> Tensor:
        """Tokens of each prompt."""
        return torch.tensor([len(s.prompt_ids) for s in self.sequences], device=self.hidden_TH.device)

    @property
    def answer_lengths_B(self) -> Tensor:
        """Tokens of each answer, its end included."""
        return torch.tensor([len(s.answer_ids) for s in self.sequences], device=self.hidden_TH.device)

    def token_log_probs(self, head: Callable[[Tensor], Tensor], *, in_chunks: bool = False) -> Tensor:
        """`log p(y_i | prompt, y_<i)` of every answer token, sequence by sequence, float32.

        Args:
            head: Hidden states `[N, H]` to logits `[N, V]`, which exist for these tokens only.
            in_chunks: Logits exist for a few tokens at a time (`token_log_probs_in_chunks`).
        """
        rows_N, positions_N = answer_positions(self.prompt_lengths_B, self.answer_lengths_B)
        targets_N = torch.tensor([i for s in self.sequences for i in s.answer_ids], device=rows_N.device)
        hidden_NH = self.hidden_at(rows_N, positions_N)
        if in_chunks:
            return token_log_probs_in_chunks(hidden_NH, targets_N, head)
        return token_log_probs(head(hidden_NH), targets_N)

    def log_probs(
        self, head: Callable[[Tensor], Tensor], token_weights_N: Tensor | None = None, *, in_chunks: bool = False
    ) -> Tensor:
        """`log p(answer | prompt)` of each sequence, float32 `[B]`: the *sum* over answer tokens, in nats.

        Args:
            head: As for `token_log_probs`.
            token_weights_N: What each answer token counts in the sum, sequence by sequence; None: 1.
            in_chunks: As for `token_log_probs`.
        """
        log_p_N = self.token_log_probs(head, in_chunks=in_chunks)
        weighted_N = log_p_N if token_weights_N is None else token_weights_N * log_p_N
        rows_N, _ = answer_positions(self.prompt_lengths_B, self.answer_lengths_B)
        return sum_per_row(weighted_N, rows_N, len(self.sequences))


def read_sequences(model: LanguageModel, sequences: Sequence[AnswerSequence]) -> ReadSequences:
    """One forward pass with gradient, under whatever adapter is active."""
    if model.packs(max(map(len, sequences))):
        packed = PackedSequences.of([s.input_ids for s in sequences])
        return ReadSequences(sequences, model.hidden_of_packed(packed), packed.places)
    ids_BT, lengths_B = pad_right([s.input_ids for s in sequences], model.end_of_answer_id, model.device)
    model.tokens_read += sum(map(len, sequences))
    # Padding is on the right, where no real token attends: causal attention needs no mask here, and without one its
    # kernels skip what lies above the diagonal.
    hidden_BTH = model.hidden(ids_BT, None)
    places = [b * ids_BT.shape[1] + torch.arange(length) for b, length in enumerate(lengths_B.tolist())]
    return ReadSequences(sequences, hidden_BTH.flatten(0, 1), places)


def answer_batches(
    model: LanguageModel, sequences: Sequence[AnswerSequence], max_tokens_per_batch: int
) -> list[list[int]]:
    """Which sequences are read together: those that begin alike, or where each is a row, those of similar length."""
    lengths = [len(s) for s in sequences]
    if not sequences or not model.packs(max(lengths)):
        return token_budget_batches(lengths, max_tokens_per_batch)
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(sequences)), key=lambda i: sequences[i].input_ids):
        if lengths[i] > room:
            batches.append([])
            room = max(max_tokens_per_batch, lengths[i])
        batches[-1].append(i)
        room -= lengths[i]
    return batches
