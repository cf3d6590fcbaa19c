"""One base, two adapters, one reference: switching, heads, masks."""

from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, byte_tokenizer, randomize_adapters, tiny_language_model, tiny_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from generator.configs import AdapterConfig
from generator.language_model import LanguageModel, resolve_dtype
from generator.padding import SharedPrefixTokens
from indexes.batching import token_budget_batches
from indexes.errors import MismatchError, ResourceError, UsageError

IDS = torch.tensor([[20, 30, 40, 50, 60]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_base_is_the_untouched_model(architecture: str) -> None:
    plain = tiny_model(architecture).eval()
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    with torch.no_grad():
        expected = plain(input_ids=IDS).logits
        outputs = {}
        for role in ("base", "selector", "generator"):
            with model.use(role):
                outputs[role] = model.head(model.hidden(IDS, None))
    assert torch.equal(outputs["base"], expected)
    assert not torch.allclose(outputs["selector"], expected)
    assert not torch.allclose(outputs["selector"], outputs["generator"])


def test_switching_never_touches_requires_grad(language_model: LanguageModel) -> None:
    """peft's own switches do (trap 3): after them an adapter would silently get no gradient."""

    def flags() -> dict[str, bool]:
        return {n: p.requires_grad for n, p in language_model.named_parameters()}

    before = flags()
    assert any(before.values())
    assert all("lora_" in n for n, on in before.items() if on)
    for role in ("selector", "base", "generator", "base"):
        with language_model.use(role):
            assert flags() == before
    assert flags() == before


def test_frozen_roles_stay_frozen(language_model: LanguageModel) -> None:
    language_model.trainable_roles(("selector",))
    with language_model.use("generator"), language_model.use("base"):
        pass
    assert not any(p.requires_grad for p in language_model.adapter_parameters("generator").values())
    assert all(p.requires_grad for p in language_model.adapter_parameters("selector").values())


def test_reference_pass_between_forward_and_backward(language_model: LanguageModel) -> None:
    """A base pass in the middle leaves the gradients as they are without it."""

    def gradients(interrupt: bool) -> list[torch.Tensor]:
        language_model.zero_grad()
        with language_model.use("generator"):
            loss = language_model.head(language_model.hidden(IDS, None)).square().sum()
            if interrupt:
                with torch.no_grad(), language_model.use("base"):
                    language_model.hidden(IDS, None)
            loss.backward()
        return [p.grad.clone() for p in language_model.adapter_parameters("generator").values() if p.grad is not None]

    plain, interrupted = gradients(False), gradients(True)
    assert len(plain) == len(interrupted) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, interrupted, strict=True))
    assert max(g.abs().max().item() for g in plain) > 0


def test_checkpointed_backward_under_the_right_adapter(language_model: LanguageModel) -> None:
    """Trap 2: equal gradients with and without checkpointing inside `use`, different ones when the role is left."""

    def gradients(checkpoint: bool, leave_early: bool = False) -> torch.Tensor:
        language_model.zero_grad()
        language_model.train()
        with language_model.gradient_checkpointing(checkpoint):
            with language_model.use("generator"):
                loss = language_model.head(language_model.hidden(IDS, None)).square().mean()
                if not leave_early:
                    loss.backward()
            if leave_early:
                with language_model.use("selector"):
                    loss.backward()
        language_model.eval()
        parameters = language_model.adapter_parameters("generator").values()
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

    plain = gradients(False)
    torch.testing.assert_close(gradients(True), plain, rtol=1e-5, atol=1e-7)
    wrong: torch.Tensor | None
    try:
        wrong = gradients(True, leave_early=True)
    except RuntimeError:  # torch may notice that the recomputation differs; either way it is not silent-and-equal
        wrong = None
    assert wrong is None or not torch.allclose(wrong, plain)


def test_dropout_of_the_base_is_off_even_in_train_mode() -> None:
    """Trap 1: otherwise the reference is a random variable."""
    model = LanguageModel(
        tiny_model("llama", attention_dropout=0.5), byte_tokenizer(), adapter=AdapterConfig(r=2, lora_dropout=0.5)
    )
    model.train()
    with torch.no_grad(), model.use("base"):
        first, second = model.hidden(IDS, None), model.hidden(IDS, None)
    assert torch.equal(first, second)


def test_the_head_reproduces_soft_capped_logits() -> None:
    """Gemma 2 squeezes its logits after the head."""
    config = Gemma2Config(
        vocab_size=len(byte_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        final_logit_softcapping=3.0,
    )
    model = LanguageModel(Gemma2ForCausalLM(config), byte_tokenizer(), adapter=AdapterConfig(r=2))
    with torch.no_grad():
        expected = model.base_model(input_ids=IDS).logits
        hidden = model.hidden(IDS, None)
    assert expected.abs().max() <= 3.0
    torch.testing.assert_close(model.head(hidden), expected)
    torch.testing.assert_close(model.logits_for_positions(hidden, torch.tensor([7, 3])), expected[..., [7, 3]])


def test_an_unknown_change_of_the_logits_is_refused() -> None:
    class Louder(LlamaForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    with pytest.raises(UsageError, match="Louder changes its logits after the output head"):
        LanguageModel(Louder(tiny_model().config), byte_tokenizer())


def test_the_head_may_not_be_adapted() -> None:
    with pytest.raises(UsageError, match="must not include the output head"):
        LanguageModel(tiny_model(), byte_tokenizer(), adapter=AdapterConfig(target_modules=["lm_head", "q_proj"]))


def test_adapters_round_trip_and_refuse_another_rank(tmp_path: object, language_model: LanguageModel) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    language_model.save_adapters(folder)
    assert not list(folder.rglob("*.bin"))
    fresh = tiny_language_model()
    fresh.load_adapters(folder)
    for role in ("selector", "generator"):
        ours, theirs = fresh.adapter_parameters(role), language_model.adapter_parameters(role)
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    other = LanguageModel(tiny_model(), byte_tokenizer(), adapter=AdapterConfig(r=5))
    with pytest.raises(MismatchError, match="must fit the base"):
        other.load_adapters(folder)
    with pytest.raises(MismatchError, match="is missing"):
        fresh.load_adapters(folder / "nowhere")


def test_missing_base(tmp_path: object) -> None:
    with pytest.raises(ResourceError, match=r"must be found at .*nothing-here"):
        LanguageModel.from_pretrained(f"{tmp_path}/nothing-here")


def test_tokenizer_without_eos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="must have an end-of-sequence token"):
        LanguageModel(tiny_model(), tokenizer)


def test_the_answer_ends_with_the_token_of_the_chat_template() -> None:
    assert tiny_language_model().end_of_answer_id == byte_tokenizer().convert_tokens_to_ids("<|end|>")
    assert tiny_language_model(chat=False).end_of_answer_id == byte_tokenizer().eos_token_id


def test_unknown_role(language_model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="got 'judge'"), language_model.use("judge"):
        pass


def test_dtype_names() -> None:
    assert resolve_dtype("auto", "cpu") is torch.float32
    with pytest.raises(UsageError, match="got 'fp8'"):
        resolve_dtype("fp8", "cpu")


def test_mixed_stores_linear_weights_and_multiplies_in_bfloat16(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    plain, mixed = (LanguageModel.from_pretrained(tmp_path, dtype=d, device="cpu") for d in ("float32", "mixed"))
    stored = {name for name, p in mixed.named_parameters() if p.dtype == torch.bfloat16}
    assert stored == {name for name, _ in mixed.named_parameters() if name.endswith("_proj.base_layer.weight")}
    with torch.no_grad():
        expected, found = (m.hidden(IDS, None) for m in (plain, mixed))
    assert found.dtype == torch.float32
    error = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-4 < error < 5e-2, error  # 0 would mean that nothing ran in bfloat16


def test_token_budget() -> None:
    """Longest first; 3 rows of 4 would be 12 > 8."""
    assert token_budget_batches([2, 4, 9, 4, 1], 8) == [[2], [1, 3], [0, 4]]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma"])
def test_shared_prefix_equals_separate_sequences(architecture: str) -> None:
    """One prompt with two replies in a row: each reply's hidden states are those of its own row."""
    model = tiny_language_model(architecture)
    prompt, replies = [20, 30, 40], [[50, 60], [70, 80]]
    device = torch.device("cpu")
    branches = SharedPrefixTokens.of_replies(2, 0, 2, device)
    tokens = SharedPrefixTokens.of_prompt(5, device).followed_by(branches)  # two padding tokens after the prompt
    lengths = torch.tensor([3])
    row = torch.tensor([[*prompt, 0, 0, *replies[0], *replies[1]]])
    with torch.no_grad():
        packed = model.hidden(
            row, model.shared_prefix_masks(lengths, 5, tokens, branches), position_ids_BQ=tokens.positions(lengths)
        )
        for i, reply in enumerate(replies):
            alone = model.hidden(torch.tensor([prompt + reply]), None)
            torch.testing.assert_close(packed[0, 5 + 2 * i : 7 + 2 * i], alone[0, 3:], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(packed[0, :3], alone[0, :3], rtol=1e-4, atol=1e-5)
        # The control: with restarting positions and no mask, transformers isolates the segments (trap 5).
        isolated = model.hidden(row, None, position_ids_BQ=tokens.positions(lengths))
    assert not torch.allclose(packed[0, 7:], isolated[0, 7:], atol=1e-2)


def test_sliding_windows_are_kept() -> None:
    """Mistral with a window of 3: a reply token must not see beyond it, as in the model's own forward."""
    model = tiny_language_model("mistral", sliding_window=3)
    prompt, reply = [20, 30, 40, 50], [60, 70]
    device = torch.device("cpu")
    branches = SharedPrefixTokens.of_replies(1, 0, 2, device)
    tokens = SharedPrefixTokens.of_prompt(4, device).followed_by(branches)
    lengths = torch.tensor([4])
    with torch.no_grad():
        packed = model.hidden(
            torch.tensor([prompt + reply]),
            model.shared_prefix_masks(lengths, 4, tokens, branches),
            position_ids_BQ=tokens.positions(lengths),
        )
        alone = model.hidden(torch.tensor([prompt + reply]), None)
        full = tiny_language_model("mistral", sliding_window=None).hidden(torch.tensor([prompt + reply]), None)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, full, atol=1e-3)


def test_linear_layers_are_adapted(language_model: LanguageModel) -> None:
    adapted = {n.split(".")[-4] for n in language_model.adapter_parameters("selector")}
    linear = {
        n.split(".")[-1] for n, m in tiny_model().named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n
    }
    assert {n.removesuffix(".lora_A") for n in adapted} >= linear or adapted
