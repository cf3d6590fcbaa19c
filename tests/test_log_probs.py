"""Answer log-probabilities against `F.cross_entropy` and against float64."""

import torch
from torch.nn import functional as F

from generator.answer_sequences import AnswerSequence, ReadSequences
from generator.log_probs import answer_positions, token_log_probs


def padded_rows(hidden: torch.Tensor, ids: torch.Tensor, prompt: list[int], answer: list[int]) -> ReadSequences:
    """Prompts of so many tokens and answers of so many, in rows of ids."""
    sequences = [
        AnswerSequence(row[:p], row[p : p + n]) for row, p, n in zip(ids.tolist(), prompt, answer, strict=True)
    ]
    places = [b * ids.shape[1] + torch.arange(len(s)) for b, s in enumerate(sequences)]
    return ReadSequences(sequences, hidden.flatten(0, 1), places)


def test_positions_by_hand() -> None:
    """P=3, L=2 is scored at 2, 3; P=1, L=1 at 0."""
    rows, positions = answer_positions(torch.tensor([3, 1]), torch.tensor([2, 1]))
    assert rows.tolist() == [0, 0, 1]
    assert positions.tolist() == [2, 3, 0]


def test_equals_cross_entropy_row_by_row() -> None:
    B, T, H, V = 3, 11, 5, 7
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(B, T, H, generator=generator), torch.randn(V, H, generator=generator)
    ids = torch.randint(V, (B, T), generator=generator)
    prompt, answer = [4, 6, 2], [3, 5, 1]
    found = padded_rows(hidden, ids, prompt, answer).log_probs(lambda h: h @ head.T)
    for b in range(B):
        p, n = prompt[b], answer[b]
        logits = hidden[b, p - 1 : p + n - 1] @ head.T
        expected = -F.cross_entropy(logits, ids[b, p : p + n], reduction="sum")
        torch.testing.assert_close(found[b], expected)


def test_upcast_before_log_softmax() -> None:
    """bfloat16 logits, 128 tokens: within 1e-3 of float64 on the same logits (bfloat16 sums are off by nats)."""
    logits = (torch.randn(128, 300, generator=torch.Generator().manual_seed(1)) * 3).to(torch.bfloat16)
    targets = torch.arange(128)
    exact = -F.cross_entropy(logits.double(), targets, reduction="sum")
    assert abs(token_log_probs(logits, targets).sum().double() - exact) < 1e-3
    careless = logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
    assert abs(careless.double() - exact) > 1e-1  # the control: what trap 9 would cost


def test_gradient_by_finite_differences() -> None:
    hidden = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    head = torch.randn(5, 3, dtype=torch.float64)
    ids, one = torch.tensor([[0, 3, 1, 4]]), torch.tensor([2])

    def log_p(h: torch.Tensor) -> torch.Tensor:
        rows, positions = answer_positions(one, one)
        logits = h[rows, positions] @ head.T
        return (logits.gather(-1, ids[rows, positions + 1][:, None])[:, 0] - logits.logsumexp(-1)).sum()

    torch.autograd.gradcheck(log_p, hidden)
    found = padded_rows(hidden, ids, [2], [2]).log_probs(lambda h: h @ head.T)
    ours = torch.autograd.grad(found.sum(), hidden)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(log_p(hidden), hidden)[0], rtol=1e-5, atol=1e-6)
