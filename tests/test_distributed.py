"""Two processes: equal gradients on both, no divergence before the first update, under DDP and FSDP."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from indexes.directory.passage_index import PassageIndex

WORKER = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tiny_models import EXAMPLES_FOR_WORKERS as EXAMPLES
from tiny_models import randomize_adapters, tiny_language_model
from retriever.listwise_selector import ListwiseSelector
from tiny_models import EXAMPLES_FOR_WORKERS as EXAMPLES
from tiny_models import randomize_adapters, tiny_language_model
from generator.generator import Generator
from indexes.directory.passage_index import PassageIndex
from retriever.dense import DenseRetriever
from retriever.selector_config import SelectorConfig
from training.config import DROConfig, EStepConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.micro_batches import MicroBatch

mode, index_path = sys.argv[1], sys.argv[2]
dist.init_process_group("gloo")
rank = dist.get_rank()
index = PassageIndex.open(index_path)
model = tiny_language_model()
retriever = DenseRetriever(index, index.load_encoder())
selector = ListwiseSelector(model, retriever, config=SelectorConfig(num_candidates=4, num_selected=2))
generator = Generator(model)
config = DROConfig(e_step=EStepConfig(num_permutations=2))
posteriors = EStep(retriever, selector, generator, config)(EXAMPLES, round=1)
joint = JointModel(selector, generator, config)
mine = (posteriors[rank],)

if mode == "ddp":
    # Built while the generator is active: a reducer that trusted peft's requires_grad would miss the selector.
    with model.use("generator"):
        wrapped = DistributedDataParallel(joint, find_unused_parameters=True)
else:
    from torch.distributed.fsdp import fully_shard
    for layer in model.base_model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(joint)
    wrapped = joint

report = {}
with model.use("generator"):
    report["kl"] = float(wrapped(MicroBatch("generator", mine))["selfaug_kl"])
gradients = {}
for role in ("selector", "generator"):
    wrapped.zero_grad()
    with model.use(role):
        loss = wrapped(MicroBatch(role, mine))["loss"]
        loss.backward()
    for name, p in joint.named_parameters():
        if p.grad is not None:
            full = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            if f".{role}." in name and "lora_B" in name:
                gradients[name] = full.flatten()
flat = torch.cat(list(gradients.values()))
others = [torch.empty_like(flat) for _ in range(2)]
dist.all_gather(others, flat)
report["largest_difference"] = float((others[0] - others[1]).abs().max())
report["norm"] = float(flat.norm())
report["roles"] = sorted({"selector" if ".selector." in n else "generator" for n in gradients})
if rank == 0:
    Path(sys.argv[4]).write_text(json.dumps(report))
dist.barrier()
dist.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# Runs one script after another, so that torch is imported once for all of them: each with a process group of its own.
SCRIPTS_IN_TURN = """
import json, os, sys
from pathlib import Path
for port, script, arguments in json.loads(Path(sys.argv[1]).read_text()):
    os.environ["MASTER_PORT"] = port
    sys.argv[1:] = arguments
    exec(script, {"__name__": "__main__"})
"""


def run_two(scripts: list[tuple[str, list[str]]], folder: Path) -> None:
    """Run scripts with their arguments, one after another, in two processes."""
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([(str(free_port()), script, arguments) for script, arguments in scripts]))
    root = Path(__file__).parents[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPTS_IN_TURN, str(jobs)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(e[-3000:] for e in errors)


@pytest.fixture(scope="module")
def finished(index: PassageIndex, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes that have computed gradients, under DDP and under FSDP, and have trained."""
    folder = tmp_path_factory.mktemp("distributed")
    tests = str(Path(__file__).parent)
    run_two(
        [
            (WORKER, ["ddp", str(index.path), tests, str(folder / "ddp.json")]),
            (WORKER, ["fsdp", str(index.path), tests, str(folder / "fsdp.json")]),
            (UNEVEN, [str(index.path), tests, str(folder)]),
            (TRAIN, [str(index.path), tests, str(base), str(folder / "run")]),
        ],
        folder,
    )
    return folder


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_gradients_agree_and_the_reference_is_the_base(mode: str, finished: Path) -> None:
    """Trap 3. Each process has another question; both adapters' gradients must come out equal on both."""
    report = json.loads((finished / f"{mode}.json").read_text())
    assert report["kl"] == 0.0
    assert report["roles"] == ["generator", "selector"]
    assert report["norm"] > 1e-3
    assert report["largest_difference"] <= 1e-6 * report["norm"]


UNEVEN = """
import datetime, json, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
import torch.distributed as dist

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
from tiny_models import EXAMPLES_FOR_WORKERS as EXAMPLES
from tiny_models import randomize_adapters, tiny_language_model
from generator.generator import Generator
from indexes.directory.passage_index import PassageIndex
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from retriever.selector_config import SelectorConfig
from training.config import DROConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.maximization import MStepTrainer
from training.micro_batches import MicroBatch

index = PassageIndex.open(sys.argv[1])
model = tiny_language_model()
randomize_adapters(model)
retriever = DenseRetriever(index, index.load_encoder())
selector = ListwiseSelector(model, retriever, config=SelectorConfig(num_candidates=4, num_selected=2))
generator = Generator(model)
config = DROConfig.from_dict({
    "e_step": {"num_permutations": 4, "proposals_per_sample": 1},
    "m_step": {"gradient_accumulation_steps": 1, "tokens_per_micro_batch": 1, "learning_rate": 1.0,
               "prior_learning_rate": 1.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"},
    "retriever_training": {"learning_rate": 1.0},
    "training_arguments": {"optim": "sgd"},
})
first, second = EStep(retriever, selector, generator, config)(EXAMPLES, round=1)
one = torch.tensor([0])
second = replace(second, permutations=second.permutations.at(one), log_likelihood_m=second.log_likelihood_m[one],
                 weights_m=torch.ones(1), baseline_m=None, log_omega_m=second.log_omega_m[one])
joint = JointModel(selector, generator, config)

def mean_gradient(*posteriors):
    for role in ("selector", "generator"):
        with model.use(role):
            joint(MicroBatch(role, posteriors))["loss"].backward()
    found = {name: p.grad / len(posteriors) for name, p in joint.named_parameters() if p.grad is not None}
    joint.zero_grad()
    return found

expected, control = mean_gradient(first, second), mean_gradient(first)
before = {name: p.detach().clone() for name, p in joint.named_parameters() if name in expected}
passes = []
loss_of = JointModel._loss
JointModel._loss = lambda self, batch: passes.append((batch.role, batch.counts)) or loss_of(self, batch)
trainer = MStepTrainer(joint, config, [first, second], output_dir=Path(sys.argv[3]), seed=0)
trainer.train()

def error(gradient):
    moved = {name: before[name] - p.detach() for name, p in joint.named_parameters() if name in before}
    scale = max(float(g.abs().max()) for g in gradient.values())
    return max(float((moved[name] - gradient[name]).abs().max()) for name in gradient) / scale

report = {"error": error(expected), "control": error(control), "passes": passes}
Path(sys.argv[3], f"uneven-{dist.get_rank()}.json").write_text(json.dumps(report))
dist.barrier()
dist.destroy_process_group()
"""


def test_processes_with_unequal_work_learn_the_mean_over_all_questions(finished: Path) -> None:
    """One has a question of four sequences and the other of one, each of which is a pass: three passes add nothing."""
    reports = [json.loads((finished / f"uneven-{rank}.json").read_text()) for rank in range(2)]
    passes = [report["passes"] for report in reports]
    assert [[role for role, _ in of_one] for of_one in passes] == [["selector"] + 4 * ["generator"]] * 2
    assert sorted(sum(counts for _, counts in of_one) for of_one in passes) == [2, 5]
    assert all(report["error"] < 1e-4 < 0.01 < report["control"] for report in reports)


TRAIN = """
import datetime, json, os, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
import torch.distributed as dist

# Processes that do not meet are a failure after half a minute, not after half an hour.
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
from tiny_models import EXAMPLES_FOR_WORKERS as EXAMPLES
from tiny_models import byte_tokenizer, tiny_model
from generator.configs import DecodingConfig
from generator.configs import AdapterConfig
from indexes.errors import MismatchError
from rag.evaluation.evaluation import evaluate
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig
from training.config import DROConfig, EStepConfig
from training.trainer import DROTrainer

rank = int(os.environ["RANK"])
torch.manual_seed(rank)  # the same adapters must come out anyway
make = lambda: RAG.create(index=sys.argv[1], base=sys.argv[3], device="cpu", adapter=AdapterConfig(r=2),
                          selector=SelectorConfig(num_candidates=4, num_selected=2),
                          decoding=DecodingConfig(max_new_tokens=2))
rag = make()
config = DROConfig.from_dict({"rounds": 1, "e_step": {"num_permutations": 2},
                              "m_step": {"learning_rate": 1e-2, "gradient_accumulation_steps": 1}})
files = {"output_dir": sys.argv[4], "compute_metrics": evaluate, "progress": False}
trainer = DROTrainer(rag, config, train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:1], **files)
assert trainer.distributed.num_processes == 2
shared_out = trainer.e_step.__class__.__call__
def counted(self, examples, **kwargs):
    assert len(examples) == 1, "each process estimates its own share"
    return shared_out(self, examples, **kwargs)
trainer.e_step.__class__.__call__ = counted
asked = []
answer_from = RAG.answer_from
RAG.answer_from = lambda self, candidates: asked.extend(c.question for c in candidates) or answer_from(self, candidates)
trainer.train()
assert len(asked) == 2 * (rank == 0), "one dev question is one batch, answered once in each of two rounds"
Path(sys.argv[4], f"history-{rank}").write_text(json.dumps(trainer.history[-1]["eval_f1"]))

if rank == 1:  # sees the metrics as they are while the other process rewrites them in place, or on a slow network disk
    for name in ("read_text", "read_bytes"):
        whole = getattr(Path, name)
        empty = lambda self, *a, whole=whole, **k: whole(self, *a, **k)[:0 if self.name == "metrics.jsonl" else None]
        setattr(Path, name, empty)
rag = make()
resumed = DROTrainer(rag, replace(config, rounds=2), train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:1], **files)
assert [record["round"] for record in resumed.train(resume_from_checkpoint=True).history] == [0, 1, 2]
model = rag.generator.language_model
flat = torch.cat([p.flatten() for r in ("selector", "generator") for p in model.adapter_parameters(r).values()])
both = [torch.empty_like(flat) for _ in range(2)]
dist.all_gather(both, flat.detach())
assert torch.equal(both[0], both[1]), "the two processes ended with different adapters"

# A damaged file is an error of every process; the others would wait for the first.
dist.barrier()
if rank == 0:
    Path(sys.argv[4], "agreed").write_text(str(float(flat.norm())))
    Path(sys.argv[4], "run.json").write_text("{")
dist.barrier()
broken = DROTrainer(rag, replace(config, rounds=3), train_dataset=EXAMPLES, **files)
try:
    broken.train(resume_from_checkpoint=True)
except MismatchError as error:
    assert "run.json must hold a JSON object" in str(error)
else:
    raise AssertionError("a damaged run went on")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_train_one_model(finished: Path) -> None:
    """The whole loop under two processes: E-step shared out, adapters equal afterwards, files written once.

    A resumed run starts at the round that the main process found, whatever another one reads of its files.
    """
    run = finished / "run"
    assert (run / "history-0").read_text() == (run / "history-1").read_text()
    assert float((run / "agreed").read_text()) > 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
