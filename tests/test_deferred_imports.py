"""What `rag ask` does not import, that it answers the same without it, and that what was put off works when it is used.

Processes of their own: in this one torch and transformers are imported already.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import PASSAGES

from indexes.corpora.corpus import Corpus
from indexes.directory.builder import build_index
from rag.pipeline import RAG

ROOT = Path(__file__).parents[1]
QUESTION = "What is the capital of France?"

# `main()` takes the words of the process, as `python -m rag` does; with words given to it, it belongs to somebody else.
ASK = """
import json, sys
from rag.cli import main
code = main() if sys.argv.pop(1) == "own" else main(sys.argv[1:])
heavy = ["torch._dynamo", "torch.distributed.tensor", "torch.fx.experimental.symbolic_shapes"]
heavy += ["sympy", "scipy", "sklearn", "datasets", "pandas", "bm25s"]
print(json.dumps([code, [name for name in heavy if name in sys.modules], "transformers" in sys.modules]))
"""

USE = """
import sys
from rag.deferred_imports import _of_numbers, _OF_NUMBERS, defer_imports
defer_imports()
import torch, sentence_transformers, transformers
from transformers import AutoModelForCausalLM, LlamaConfig
put_off = ["torch._dynamo", "torch.distributed.tensor", "sympy", "sklearn", "datasets"]
assert not [name for name in put_off if name in sys.modules]

# isinstance needs no import, a call does; both are then those of the real class.
from sentence_transformers.base import trainer
reference = trainer.IterableDataset
assert not isinstance([], reference) and not isinstance([], (int, reference)) and "datasets" not in sys.modules
import datasets
assert isinstance(datasets.Dataset.from_list([{"a": 1}]).to_iterable_dataset(), reference)
assert not isinstance(datasets.Dataset.from_list([{"a": 1}]), reference)
assert issubclass(datasets.IterableDataset, reference) and not issubclass(datasets.Dataset, reference)
class Mine(reference): pass
assert Mine.__mro__[1] is datasets.IterableDataset and str(reference | None).startswith("typing.Optional")

# A function: the distances of sentence-transformers, against torch's.
a, b = torch.arange(6.).view(2, 3), torch.ones(2, 3)
found = sentence_transformers.util.manhattan_sim(a, b)
assert torch.allclose(found, -torch.cdist(a, b, p=1)) and not torch.allclose(found, -torch.cdist(a, b, p=2))

# What is known of numbers is what the real functions say of them; a wrong rule would be detected.
import torch.fx.experimental.symbolic_shapes as real
values = [True, False, 0, 1, 2, (), (1,), (1, 2), [1, 2], (2, 1)]
cases = [(v,) for v in values] + [(v, w) for v in values for w in values] + [(True, True, False), (False, False, True)]
def outcome(function, *arguments):
    try:
        return function(*arguments)
    except (AssertionError, AttributeError, TypeError) as error:
        return type(error)
def wrong(rules):
    return {(n, c) for n, rule in rules.items() for c in cases
            if (repr(outcome(_of_numbers, rule, getattr(real, n), *c)) != repr(outcome(getattr(real, n), *c)))}
assert not wrong(_OF_NUMBERS) and wrong({"sym_and": _OF_NUMBERS["sym_or"]})
assert sum(rule(*c) is not NotImplemented for rule in _OF_NUMBERS.values() for c in cases) > 40

# The compiler: functions that were marked before it was imported are known to it, and it compiles.
from transformers.modeling_utils import PreTrainedModel
from transformers.integrations import finegrained_fp8
kernel = finegrained_fp8._load_finegrained_fp8_kernel
assert "torch._dynamo" not in sys.modules
double = torch.compile(lambda x: 2 * x + 1, backend="eager")
assert torch.equal(double(a), 2 * a + 1)
compiler = sys.modules["torch._dynamo"]
assert torch._dynamo is compiler and id(kernel) in compiler.trace_rules._allowed_callable_ids
assert id(defer_imports) not in compiler.trace_rules._allowed_callable_ids
from torch.distributed.tensor import DTensor
assert torch.distributed.tensor.DTensor is DTensor and isinstance(DTensor, type) and torch.distributed.is_available()

# What transformers found in its folders, looked through once, is what it finds when it looks again.
from transformers.utils import import_utils
folder = transformers.models.__file__
remembered = import_utils.define_import_structure(folder)
import_utils.create_import_structure_from_path.cache_clear()
assert import_utils.define_import_structure.__wrapped__(folder) == remembered and len(remembered) > 3

# Training in the same process: a step of a model with a loss.
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
model = AutoModelForCausalLM.from_config(config)
ids = torch.arange(8)[None]
loss = model(input_ids=ids, labels=ids).loss
loss.backward()
assert loss.isfinite() and all(p.grad is not None for p in model.parameters())
"""

DISABLED = """
import sys
from rag.deferred_imports import defer_imports
defer_imports()
import torch
calls = []
@torch.compiler.disable
def outside(x):
    calls.append(torch.compiler.is_compiling())
    return x + 1
assert outside(torch.ones(1)).item() == 2 and "torch._dynamo" not in sys.modules
compiled = torch.compile(lambda x: outside(2 * x), backend="eager")
assert compiled(torch.ones(1)).item() == 3 and calls == [False, False]
def inside(x):
    calls.append(torch.compiler.is_compiling())
    return x + 1
torch.compile(lambda x: inside(2 * x), backend="eager")(torch.ones(1))
assert calls[-1], "the control is compiled"
"""


def run(script: str, *words: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deferred")
    build_index(Corpus.from_passages(PASSAGES), "tiny", folder / "index", progress=False)
    return RAG.create(index=folder / "index", device="cpu").save_pretrained(folder / "bundle")


def ask(bundle: Path, who: str, **variables: str) -> tuple[dict[str, Any], int, list[str]]:
    words = (who, "ask", "--bundle", str(bundle), QUESTION, "--device", "cpu", "--json")
    answers, state = run(ASK, *words, **variables).splitlines()
    code, heavy, has_transformers = json.loads(state)
    assert has_transformers
    return json.loads(answers), code, heavy


def test_ask_imports_no_compiler_and_nothing_of_training_and_answers_the_same(bundle: Path) -> None:
    answered, code, heavy = ask(bundle, "own")
    assert (code, heavy) == (0, [])
    control, code, heavy = ask(bundle, "somebody else's")
    assert {"torch._dynamo", "torch.distributed.tensor", "sympy", "sklearn", "datasets", "pandas"} <= set(heavy)
    assert (answered, code) == (control, 0)
    assert answered["answers"][0]["passages"]


def test_a_process_of_a_launcher_keeps_distributed_tensors(bundle: Path) -> None:
    assert "torch.distributed.tensor" in ask(bundle, "own", LOCAL_RANK="0")[2]


def test_what_was_put_off_works_when_it_is_used() -> None:
    run(USE)


def test_functions_that_may_not_be_compiled_are_not_compiled_later_either() -> None:
    run(DISABLED)
