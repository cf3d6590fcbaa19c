r"""All baselines on real questions with a real encoder and the tiny base: `rag sweep` with what it needs before.

    python -m benchmarks.baselines squad --data DATA --encoder sentence-transformers/all-MiniLM-L6-v2 --output DIR
    python -m benchmarks.baselines 2wiki --data DATA --encoder sentence-transformers/all-MiniLM-L6-v2 --output DIR
    rag forgetting --bundle DIR/sweep/trials/sft/bundle DIR/sweep/trials/sft_selfaug/bundle \
        --pairs DATA/probes/blimp.jsonl.gz --text DATA/probes/wikitext2_test.jsonl.gz

Passages are cut to 48 of the encoder's tokens, since the tiny base reads 2,048 tokens of its own, which are short.
Questions are shuffled first: in these files those of one article stand together. A sweep that was killed continues.
The settings are in benchmarks/baselines.yaml.
"""

import argparse
import gzip
import random
import sys
from pathlib import Path

from rag.cli import main as rag

DEV_QUESTIONS = {"squad": 100, "2wiki": 60}
LIMITS = ["--max_train_samples", "2000", "--max_test_samples", "500"]
CHUNKS = ["--chunk_tokens", "48", "--chunk_overlap", "8", "--dtype", "mixed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=list(DEV_QUESTIONS))
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--encoder", required=True, help="sentence-transformers name or folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", default="2")
    args = parser.parse_args()
    source, output = args.data / args.data_set, args.output
    split(source, output, DEV_QUESTIONS[args.data_set])
    index = str(output / "index")
    if not (output / "index").is_dir():
        corpus = str(source / "corpus.jsonl.gz")
        if code := rag(
            ["index", "build", "--corpus", corpus, "--encoder", args.encoder, "--output_dir", index, *CHUNKS]
        ):
            return code
    files = [
        word for name in ("train", "eval", "test") for word in (f"--{name}_dataset", str(output / f"{name}.jsonl"))
    ]
    settings = str(Path(__file__).with_suffix(".yaml"))
    where = ["--index", index, *files, "--output_dir", str(output / "sweep"), "--workers", args.workers]
    return rag(["sweep", "--config", settings, *where, *LIMITS])


def split(source: Path, output: Path, eval_questions: int) -> None:
    """Shuffled questions; the first of those that are held out choose the round, the others fill the table."""
    output.mkdir(parents=True, exist_ok=True)
    held_out = shuffled(source / "dev.jsonl.gz")
    parts = {"eval": held_out[:eval_questions], "test": held_out[eval_questions:]}
    for name, lines in {"train": shuffled(source / "train.jsonl.gz"), **parts}.items():
        (output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def shuffled(file: Path) -> list[str]:
    """Its lines in an order that is the same every time."""
    with gzip.open(file, "rt", encoding="utf-8") as opened:
        lines = opened.readlines()
    random.Random(0).shuffle(lines)
    return lines


if __name__ == "__main__":
    sys.exit(main())
