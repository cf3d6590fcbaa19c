"""Encoding a corpus, against the loops that others run: the same model and texts, one thread.

    python -m benchmarks.encoding [--json] [--quick]

Rivals: FlashRAG's way of building an index (batches of 256 in the order of the corpus, padded to the longest, mean
pooling, float32) and `SentenceTransformer.encode` in float32 and with bfloat16 weights. Ours is `dtype="mixed"` where
the CPU multiplies in bfloat16; elsewhere it is float32, as the rival's products are, and the targets are lower.
"Even" texts have 100 words, as DPR's passages; "skewed" ones a log-normal number with a mean of 70 (90 tokens).
The model is all-MiniLM-L6-v2 where RAG_ENCODER names its folder, else random weights of its shape, which cost the same.
The vectors of both sides must agree (cosine at least 0.9999, for the rival with bfloat16 weights 0.999).

Axes: N texts, d dimensions.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.timing import Case, Make, Options, main
from indexes import Encoder, Passage
from rag.worlds.encyclopedia import passages

FLASHRAG_BATCH = 256
QUICK_TARGET = 2.2
"""Against float32 with 32 texts: a call converts all weights to bfloat16 once, which is 4 % of so small a corpus."""
FLOAT32_TARGET = 1.0
"""To reach where the CPU has no fast bfloat16: what is left to gain is padding."""
Vectors = NDArray[np.float32]


def encoders(device: str, *dtypes: str) -> list[Encoder]:
    """The real model, or one of its shape, in each of these dtypes."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        name = os.environ.get("RAG_ENCODER") or random_encoder(Path(folder))
        return [Encoder.from_pretrained(name, device=device, dtype=dtype, passage_prompt="") for dtype in dtypes]


def random_encoder(folder: Path) -> str:
    """Where random weights of the shape of all-MiniLM-L6-v2 are, with the tokenizer of the tiny base."""
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, initializer_range=0.1
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    tiny = Path(__file__).parents[1] / "rag" / "tiny_base" / "base"
    AutoTokenizer.from_pretrained(tiny, model_max_length=512).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    pooled = SentenceTransformer(modules=[transformer, Pooling(384, "mean")], device="cpu")
    pooled.save_pretrained(str(folder / "st"), create_model_card=False)
    return str(folder / "st")


def texts(kind: str, count: int, *, seed: int = 0) -> list[str]:
    """English texts, "even" or "skewed" in length: stretches of an encyclopedia."""
    random = np.random.default_rng(seed)
    words = " ".join(row["text"] for row in passages()).split()
    sigma = 0.8
    skewed = random.lognormal(np.log(70) - sigma**2 / 2, sigma, count).clip(5, 400).astype(int)
    lengths = skewed if kind == "skewed" else np.full(count, 100)
    starts = random.integers(0, len(words) - 400, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


@torch.no_grad()
def flashrag_encode(model: SentenceTransformer, batch: Sequence[str]) -> Vectors:
    """Fixed batches in the given order, padded to the longest, mean pooling, unit length."""
    found = []
    for start in range(0, len(batch), FLASHRAG_BATCH):
        features = model[0].preprocess(list(batch[start : start + FLASHRAG_BATCH]))
        mask = features["attention_mask"][..., None].float()
        hidden = model[0](features)["token_embeddings"]
        found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)))
    return torch.cat(found).numpy()


def library_encode(model: SentenceTransformer, batch: Sequence[str]) -> Vectors:
    """`SentenceTransformer.encode` as it comes."""
    vectors_Nd: Vectors = model.encode(list(batch), show_progress_bar=False, convert_to_tensor=True).float().numpy()
    return vectors_Nd / np.linalg.norm(vectors_Nd, axis=1, keepdims=True)


def ours(encoder: Encoder, batch: Sequence[str]) -> Vectors:
    """What `build_index` calls."""
    return encoder.encode_passages([Passage(str(n), "", text) for n, text in enumerate(batch)], batch_size=256)


def cosine(one_Nd: Vectors, other_Nd: Vectors) -> float:
    """The lowest over pairs of unit vectors."""
    return float((one_Nd * other_Nd).sum(axis=1).min())


def build(options: Options, kind: str, rival: str, target: float) -> Case:
    """One kind of text, one rival."""
    batch = texts(kind, 32 if options.quick else 256)
    narrow = options.dtype == torch.bfloat16
    dtypes = "mixed" if narrow else "float32", "bfloat16" if rival == "encode, bfloat16" else "float32"
    mixed, theirs = encoders(options.device, *dtypes)
    plain = theirs.model.eval()
    loops: dict[str, Callable[[], Vectors]] = {
        "FlashRAG's loop": lambda: flashrag_encode(plain, batch),
        "encode, float32": lambda: library_encode(plain, batch),
        "encode, bfloat16": lambda: library_encode(plain, batch),
    }

    def check() -> None:
        least = 0.999 if rival == "encode, bfloat16" else 0.9999
        mine_Nd, theirs_Nd = ours(mixed, batch), loops[rival]()
        found, control = cosine(mine_Nd, theirs_Nd), cosine(np.roll(mine_Nd, 1, axis=0), theirs_Nd)
        if not found >= least > control:
            raise RuntimeError(f"cosines with {rival} must reach {least}, got {found:.5f} and {control:.5f} shuffled.")

    lengths = [len(ids) for ids in mixed.tokenizer(list(batch), truncation=True)["input_ids"]]
    weights = sum(p.numel() for n, p in mixed.model.named_parameters() if p.ndim == 2 and "embeddings" not in n)
    return Case(
        path=f"corpus encoding, {kind} lengths",
        shape=f"MiniLM, {len(batch)} texts; {rival}",
        rival=loops[rival],
        ours=lambda: ours(mixed, batch),
        check=check,
        flops=2 * weights * sum(lengths) + 4 * 6 * 384 * sum(n * n for n in lengths),
        dtype=options.dtype,
        target=_target(options, rival, target),
    )


def _target(options: Options, rival: str, full: float) -> float:
    if options.dtype != torch.bfloat16:
        return FLOAT32_TARGET
    return QUICK_TARGET if options.quick and rival == "encode, float32" else full


QUICK = [("skewed", "FlashRAG's loop"), ("even", "encode, float32")]
MAKES = [
    Make(partial(build, kind=kind, rival=rival, target=target), quick=(kind, rival) in QUICK)
    for kind in ("skewed", "even")
    for rival, target in (("FlashRAG's loop", 4.0), ("encode, float32", 2.5), ("encode, bfloat16", 1.1))
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
