"""SelfAug's KL from hidden states: value and gradient, the head alone.

    python -m benchmarks.selfaug_head [--device cuda] [--json] [--quick]

Rival: two tensors of tokens x vocabulary in float32, softmax of both, masked copies, autograd. Ours: chunk by chunk,
the gradient formed in the forward pass.
"""

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.setting import agree
from benchmarks.timing import Case, Make, Options, main
from training.losses import selfaug_loss

HIDDEN = 896


def build(options: Options, vocabulary: int, tokens: int, target: float | None, memory_target: float | None) -> Case:
    """Random hidden states and a frozen random head."""
    torch.manual_seed(0)
    tokens = tokens // 2 if options.quick else tokens
    device, dtype = options.device, options.dtype
    head = nn.Linear(HIDDEN, vocabulary, bias=False, device=device, dtype=dtype).requires_grad_(False)
    nn.init.normal_(head.weight, std=0.05)
    base_NH = torch.randn(tokens, HIDDEN, device=device).to(dtype)
    tuned_NH = (base_NH.float() + 0.1 * torch.randn(tokens, HIDDEN, device=device)).to(dtype)

    def rival() -> tuple[Tensor, Tensor]:
        leaf_NH = tuned_NH.clone().requires_grad_()
        with torch.no_grad():
            base_NV = head(base_NH)
        every = torch.ones(1, tokens, dtype=torch.bool, device=device)
        loss = rivals.selfaug_head(head(leaf_NH)[None], base_NV[None], every)
        loss.backward()
        return loss.detach(), leaf_NH.grad

    def ours(reference_NH: Tensor = base_NH) -> tuple[Tensor, Tensor]:
        leaf_NH = tuned_NH.clone().requires_grad_()
        weights_N = torch.full((tokens,), 1 / tokens, device=device)
        loss = selfaug_loss(leaf_NH, reference_NH, weights_N, head)
        loss.backward()
        return loss.detach(), leaf_NH.grad

    def check() -> None:
        (value, gradient), expected = ours(), rival()
        wrong = ours(base_NH.roll(1, dims=0))
        agree(
            "SelfAug's KL", *(float((v - expected[0]).abs() / expected[0]) for v in (value, wrong[0])), tolerance=1e-3
        )
        errors = (float((g - expected[1]).float().norm() / expected[1].float().norm()) for g in (gradient, wrong[1]))
        agree("its gradient", *errors, tolerance=1e-2)

    return Case(
        path="SelfAug head",
        shape=f"H = {HIDDEN}, V = {vocabulary:,}, {tokens} tokens",
        rival=rival,
        ours=ours,
        check=check,
        flops=3 * 2 * tokens * HIDDEN * vocabulary,
        dtype=dtype,
        target=target,
        bound_by_products=True,
        memory_target=memory_target,
    )


MAKES = [
    Make(lambda o: build(o, 32000, 2048, 2.5, 20)),
    Make(lambda o: build(o, 151936, 512, 2.5, 20)),
    Make(lambda o: build(o, 32000, 4096, None, 20), quick=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
