#!/usr/bin/env bash
# torch 2.13.0: `torch.autocast` converts the float32 weights of a frozen model again at every call, because its cache takes only
# leaves that require a gradient. Of a model with LoRA adapters the small adapters are converted once and the large base every time:
# in generation, at each token.
#
# One would guess that weights that never change are the easiest to keep. (`cache_enabled=True` is the default, and the page on
# autocast says that the cache is for weights that are used several times.) Two calls inside one autocast block show it: a trainable
# layer converts its weight once, a frozen one twice, and autograd keeps both copies if an input requires a gradient.
#
# What to do: store the weights of frozen linear layers in bfloat16 (`layer.weight.data = layer.weight.data.bfloat16()`); autocast
# leaves them as they are, and the results are the same bit for bit, gradients of inputs included.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

print("torch", torch.__version__.split("+")[0])


class CountConversions(TorchDispatchMode):
    """Counts conversions of a tensor of the weight's shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def run(trainable, stored=torch.float32):
    torch.manual_seed(0)
    layer = nn.Linear(96, 96, bias=False).requires_grad_(trainable)
    layer.weight.data = layer.weight.data.to(stored)
    x = torch.linspace(-1, 1, 7 * 96).reshape(7, 96).requires_grad_()
    kept = {}

    def note(tensor):
        if tensor.shape == layer.weight.shape and tensor.data_ptr() != layer.weight.data_ptr():
            kept[tensor.data_ptr()] = tensor
        return tensor

    with CountConversions(layer.weight.shape) as mode, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(layer(x).float())
    result.float().sum().backward()
    return mode.count, len(kept), result, x.grad


trainable, frozen, stored = run(True), run(False), run(False, torch.bfloat16)
for name, (count, kept, _, _) in (("trainable", trainable), ("frozen", frozen), ("frozen, in bfloat16", stored)):
    print(f"{name:20} two calls: {count} conversions of the weight, {kept} copies kept for the backward pass")
same = torch.equal(stored[2], frozen[2]) and torch.equal(stored[3], frozen[3])
print("stored in bfloat16, the same result and gradient:", same)
assert [one[:2] for one in (trainable, frozen, stored)] == [(1, 1), (2, 2), (0, 0)] and same
PYTHON
