"""Whole texts are scored as transformers scores them with labels, each token once, whatever the context."""

import pytest
import torch
from tiny_models import ARCHITECTURES, byte_tokenizer, randomize_adapters, tiny_language_model

from generator.language_model import LanguageModel
from generator.likelihood import Continuation, continuation_likelihoods, prefix_id, rolling_windows
from indexes.errors import UsageError


def labelled_log_prob(model: LanguageModel, context: list[int], target: list[int]) -> float:
    """transformers' own loss: the mean over labels, everything else masked by -100."""
    ids = torch.tensor([context + target])
    labels = torch.tensor([[-100] * len(context) + target])
    with torch.no_grad():
        return -float(model.base_model(input_ids=ids, labels=labels).loss) * len(target)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("role", ["base", "generator"])
def test_a_continuation_scores_as_with_labels(architecture: str, role: str) -> None:
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    rows = [
        Continuation([1], [40, 41, 42, 43, 44, 45, 46]),
        Continuation([50, 51, 52], [60]),
        Continuation([9], [10, 11]),
    ]
    with model.use(role):
        found = continuation_likelihoods(model, rows)
        expected = [labelled_log_prob(model, row.context_ids, row.target_ids) for row in rows]
    assert [one.log_prob for one in found] == pytest.approx(expected, rel=1e-4)


def test_likelihoods_depend_on_the_role(language_model: LanguageModel) -> None:
    row = [Continuation([1], [40, 41, 42])]
    found = []
    for role in ("base", "generator", "selector"):
        with language_model.use(role):
            found.append(continuation_likelihoods(language_model, row)[0].log_prob)
    assert len({round(value, 3) for value in found}) == 3


def test_greedy_means_that_every_token_was_the_most_probable(language_model: LanguageModel) -> None:
    ids = torch.tensor([[20, 21, 22]])
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat([ids, language_model.base_model(ids).logits[:, -1:].argmax(-1)], dim=1)
    context, reply = ids[0, :3].tolist(), ids[0, 3:].tolist()
    wrong = [*reply[:-1], (reply[-1] + 1) % 100]
    found = continuation_likelihoods(language_model, [Continuation(context, reply), Continuation(context, wrong)])
    assert [one.is_greedy for one in found] == [True, False]


def test_chunked_logits_give_the_same_likelihoods(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Continuation([1], list(range(10, 40))), Continuation([2, 3], list(range(50, 57)))]
    whole = [one.log_prob for one in continuation_likelihoods(language_model, rows)]
    sizes: list[int] = []
    head = language_model.head
    monkeypatch.setattr(language_model, "head", lambda hidden: sizes.append(len(hidden)) or head(hidden))
    monkeypatch.setattr("generator.log_probs.logit_bytes", lambda cuda: 4 * language_model.base_model.vocab_size * 3)
    assert [one.log_prob for one in continuation_likelihoods(language_model, rows)] == pytest.approx(whole, rel=1e-6)
    assert max(sizes) == 3 and sum(sizes) == 37


def test_the_windows_of_the_harness() -> None:
    """The example in the docstring of lm-evaluation-harness's `LM.loglikelihood_rolling`: width 4, ten tokens."""
    windows = rolling_windows(range(10), -1, 4)
    assert [(w.context_ids, w.target_ids) for w in windows] == [
        ([-1], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
    assert [len(w) for w in windows] == [4, 4, 4]


@pytest.mark.parametrize(("length", "width"), [(1, 1), (7, 1), (7, 3), (9, 3), (3, 9), (40, 16)])
def test_windows_are_those_of_the_harness_itself(length: int, width: int) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="needs the harness extra")
    ids = [100 + i for i in range(length)]
    theirs = map(utils.make_disjoint_window, utils.get_rolling_token_windows(ids, 7, width, 1))
    assert [(w.context_ids, w.target_ids) for w in rolling_windows(ids, 7, width)] == list(theirs)


def test_windows_of_width_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 token, got 0"):
        rolling_windows([1, 2], 0, 0)


def test_prefix_token_of_a_text() -> None:
    tokenizer = byte_tokenizer()
    assert prefix_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.bos_token = "<pad>"
    assert prefix_id(tokenizer) == tokenizer.bos_token_id != tokenizer.eos_token_id
