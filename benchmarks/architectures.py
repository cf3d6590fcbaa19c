"""Which causal language models can be the base: every architecture of transformers, tiny and with random weights.

    python -m benchmarks.architectures                # a line for each, then the counts
    python -m benchmarks.architectures --markdown     # the tables of docs/base_models.md
    python -m benchmarks.architectures --only bloom mamba

Each model answers, alone and in a batch; learns for one step; is saved with its base and opened again; and must then
answer as before. Every architecture has a process of its own, with a limit of time and of memory; nothing is
downloaded.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from generator.configs import AdapterConfig, DecodingConfig
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.encoder import Encoder
from indexes.errors import RAGError
from indexes.tiny_encoder import TINY as TINY_MODEL
from rag.pipeline import RAG
from rag.tiny_base import base_path
from retriever.selector_config import SelectorConfig
from training.config import DROConfig, EStepConfig, SupervisedConfig
from training.questions.example import QAExample
from training.trainer import DROTrainer

CONTEXT = 1024
SECONDS = 120
MEMORY = 12 * 2**30
"""Address space of one process, most of which is never touched."""
WINDOW = 8
"""Of sliding attention: short, so that a mask that forgets it changes the answer."""

PASSAGES = [
    Passage("0", "Ada", "Ada lives in Rom and sells bread."),
    Passage("1", "Bob", "Bob lives in Oslo, where it snows in winter."),
    Passage("2", "Cleo", "Cleo lives in Graz and has two brothers."),
    Passage("3", "Dan", "Dan lives in Lyon."),
    Passage("4", "Eva", "Eva lives in Cork, not far from the sea."),
]
EXAMPLES = [
    QAExample("a", "Where does Ada live?", ("Rom",), ("0",)),
    QAExample("b", "In which town does Bob, of whom we spoke, live?", ("Oslo",), ("1",)),
]
QUESTIONS = [example.question for example in EXAMPLES]

# Sizes under the names that configs have for them; each config takes those that it knows.
TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "width"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "dff"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_inner", "ffn_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "d_kv", "rotary_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_head_dim", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"), CONTEXT),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "model_max_length"), CONTEXT),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_top_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("sliding_window", "window_size", "local_attention", "attention_window_size"), WINDOW),
    **dict.fromkeys(("attention_chunk_size", "sliding_window_size"), WINDOW),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "d_state"), 8),
    **dict.fromkeys(("mamba_d_head",), 16),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
    "initializer_range": 0.2,
    "is_decoder": True,
    "layer_types": None,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Result:
    """What became of one architecture."""

    kind: str
    model: str
    state: str
    """`"ok"`, `"refused"` (with a sentence of ours), `"not built"` (no tiny one could be made) or `"failed"`."""
    note: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind:28} {self.state:9} {self.seconds:5.1f} s  {self.note}"


# What an architecture needs besides, or instead.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5": {"text_config": {"layer_types": ["linear_attention", "full_attention"]}},
    "qwen3_5_moe": {"text_config": {"layer_types": ["linear_attention", "full_attention"]}},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "dbrx": {
        "tie_word_embeddings": False,
        "d_model": 32,
        "n_heads": 4,
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "n_routed_experts": 4, "zero_expert_num": 2},
}


def tiny_config(kind: str, **changes: Any) -> Any:
    """A config of this architecture, of the smallest size that its heads and layers allow."""
    made = CONFIG_MAPPING[kind]
    settings = _tiny(made)
    for name, value in {**OWN.get(kind, {}), **changes}.items():
        settings[name] = {**settings[name], **value} if isinstance(settings.get(name), dict) else value
    return made(**settings)


def _tiny(made: Any) -> dict[str, Any]:
    plain = made()
    known = {*plain.to_dict(), *getattr(plain, "attribute_map", {})}
    named = plain.attribute_map if hasattr(plain, "attribute_map") else {}
    vocabulary = len(AutoTokenizer.from_pretrained(base_path(TINY_MODEL)))
    wanted = {**TINY, "vocab_size": vocabulary}
    settings = {name: value for name, value in wanted.items() if name in known and name not in named}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name in known:
            settings[name] = 1
    if "qk_rope_head_dim" in known:
        settings.pop("rotary_dim", None)
        settings.pop("qk_head_dim", None)
    if {"kv_lora_rank", "num_key_value_heads"} <= set(settings):
        settings["num_key_value_heads"] = settings["num_attention_heads"]  # latent attention has a key for each head
    parts: dict[str, Any] = getattr(made, "sub_configs", {})
    for name, part in parts.items():
        if name in known and getattr(part, "model_type", ""):
            settings[name] = _tiny(part)
    return settings


def build(kind: str, folder: Path) -> Any:
    """Write a random model of this architecture with the tiny tokenizer; returns its class name."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    if parameters > 20_000_000:
        raise ValueError(f"{parameters / 1e6:.0f} million parameters are not tiny")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_path(TINY_MODEL)).save_pretrained(folder)
    return model


def pipeline(index: Any, base: Path) -> RAG:
    """A fresh pipeline over the base, in which the selector uses the logits of the language model."""
    rag = RAG.create(
        index=index,
        base=base,
        selector=SelectorConfig(num_candidates=4, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=4),
        adapter=AdapterConfig(r=2),
        dtype="float32",
        device="cpu",
    )
    with torch.no_grad():
        rag.selector.prior.gate.fill_(0.5)
    return rag


def try_one(kind: str, index_folder: Path, work: Path) -> Result:
    """All that the table says of one architecture."""
    model = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    try:
        build(kind, work / "base")
    except Exception as error:
        return Result(kind, model, "not built", _said(error))
    try:
        return Result(kind, model, "ok", road(pipeline(index_folder, work / "base"), work))
    except RAGError as error:
        return Result(kind, model, "refused", _said(error))
    except Exception as error:
        if "--traceback" in sys.argv:
            traceback.print_exc()
        return Result(kind, model, "failed", _said(error))


def road(rag: RAG, work: Path) -> str:
    """Answer, learn, save, open, answer; returns what is worth a note.

    Raises:
        AssertionError: Something is not as it should be; the message says what.
    """
    check_rows(rag)
    check_batch(rag)
    learn(rag, work / "run")
    check_batch(rag)
    before = rag.answer(QUESTIONS)
    weights = rag.generator.language_model.base_weights()
    bundle = rag.save_pretrained(work / "bundle", include_base=True)
    again = RAG.from_pretrained(bundle, device="cpu")
    found = again.generator.language_model.base_weights()
    changed = [n for n in weights if n not in found or not torch.equal(weights[n], found[n])]
    assert not changed, f"{len(changed)} weights changed, such as {changed[0]}"
    assert again.answer(QUESTIONS) == before, "the bundle answers otherwise"
    return ""


def check_batch(rag: RAG) -> None:
    """Several questions are answered as each of them alone."""
    together, alone = rag.answer(QUESTIONS), [rag.answer(question) for question in QUESTIONS]
    for one, other in zip(together, alone, strict=True):
        assert one.permutation == other.permutation, "another permutation in a batch"
        assert one.text == other.text, "another answer in a batch"
        difference = abs(one.log_prob - other.log_prob)
        assert difference < 1e-2, f"log p of an answer differs by {difference:.3f} in a batch"


def check_rows(rag: RAG) -> None:
    """Permutations behind one prompt have the probabilities that they have in rows of their own."""
    selector, model = rag.selector, rag.generator.language_model
    candidates = rag.retriever.search(QUESTIONS, rag.num_candidates)
    z_mK = torch.tensor([[0, 1], [2, 3], [3, 0]])
    with torch.no_grad(), model.use("selector"):
        together = selector.log_prob(candidates, [z_mK] * len(candidates))
        ids = torch.tensor(selector.identifiers.token_ids)
        for one, found_m in zip(candidates, together, strict=True):
            for z_K, found in zip(z_mK, found_m, strict=True):
                reply = [int(ids[z_K[0]]), *selector.separator_ids]
                row = torch.tensor([selector.prompt_ids(one) + reply])
                hidden_TH = model.hidden(row, None)[0]
                lm_Kn = model.logits_for_positions(hidden_TH[[-1 - len(reply), -1]], ids[: len(one)])
                logits_Kn = selector._combine(lm_Kn, selector.prior_scores(one))
                second_n = logits_Kn[1].clone()
                second_n[z_K[0]] = -torch.inf
                expected = logits_Kn[0].log_softmax(-1)[z_K[0]] + second_n.log_softmax(-1)[z_K[1]]
                difference = abs(float(found - expected))
                assert difference < 1e-2, f"log p of a permutation differs by {difference:.3f} behind a shared prompt"


def learn(rag: RAG, folder: Path) -> None:
    """One step of training for both roles."""
    config = DROConfig(
        rounds=1,
        e_step=EStepConfig(num_permutations=2, proposals_per_sample=1),
        supervised=SupervisedConfig(num_train_epochs=0),
    )
    DROTrainer(rag, config, train_dataset=EXAMPLES, output_dir=folder, progress=False).train()
    model = rag.generator.language_model
    assert not model.is_untrained("generator"), "the generator did not learn"
    assert not model.is_untrained("selector"), "the selector did not learn"


# -- processes -------------------------------------------------------------------------------------------------


def run_all(kinds: Sequence[str], *, seconds: int = SECONDS) -> Iterator[Result]:
    """Each architecture in a process of its own, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        build_index(
            Corpus.from_passages(PASSAGES), Encoder.from_pretrained(TINY_MODEL, device="cpu"), index, progress=False
        )
        for kind in kinds:
            yield _in_a_process(kind, index, Path(folder), seconds)


def _in_a_process(kind: str, index: Path, folder: Path, seconds: int) -> Result:
    context = multiprocessing.get_context("fork")  # torch and transformers are imported once
    ours, theirs = context.Pipe(duplex=False)
    started = time.monotonic()
    process = context.Process(target=_child, args=(theirs, kind, index, folder))
    process.start()
    theirs.close()
    model = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    try:
        if ours.poll(seconds):
            state, note = ours.recv()
        else:
            state, note = "failed", f"not done after {seconds} s"
    except EOFError:
        state, note = "failed", "its process ended without a word (memory?)"
    process.kill()
    process.join()
    return Result(kind, model, state, note, time.monotonic() - started)


def _child(pipe: Any, kind: str, index: Path, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    quiet()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        result = try_one(kind, index, Path(work))
    pipe.send((result.state, result.note))
    pipe.close()


def quiet() -> None:
    """No warnings about models that are random anyway."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] if isinstance(error, RAGError | AssertionError) else f"{type(error).__name__}: {lines[0]}"
    return text[:300]


def tables(results: Sequence[Result]) -> str:
    """In Markdown: the names of those that are ok, and a row with its reason for each of the others."""
    fine = ", ".join(f"`{r.kind}`" for r in results if r.state == "ok")
    rows = [f"| `{r.kind}` | {r.state} | {r.note.replace('|', '/')} |" for r in results if r.state != "ok"]
    return "\n".join([fine, "", "| architecture | | reason |", "|---|---|---|", *rows])


def main() -> None:
    """Print a line for each architecture, or the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--seconds", type=int, default=SECONDS, help="for one architecture")
    parser.add_argument(
        "--markdown", action="store_true", help="a table of those that are not ok, and the names of the rest"
    )
    parser.add_argument("--traceback", action="store_true", help="of what failed")
    args = parser.parse_args()
    quiet()
    results = []
    for result in run_all(args.only, seconds=args.seconds):
        results.append(result)
        print(result, file=sys.stderr if args.markdown else sys.stdout, flush=True)
    if args.markdown:
        print(tables(results))
    counts = {state: sum(r.state == state for r in results) for state in ("ok", "refused", "not built", "failed")}
    print(f"{len(results)} architectures: " + ", ".join(f"{n} {state}" for state, n in counts.items()))


if __name__ == "__main__":
    main()
