"""Peak memory of `build_index` as the corpus grows: `python -m benchmarks.index_memory`.

Invented passages of 60 words, and a bag of 384-dimensional word vectors for an encoder, so that a million passages take
minutes; a transformer adds its weights and a batch of activations, whatever the number of passages. Each build is a
process of its own. "anonymous" is what the system cannot take back: what is mapped from files is dropped when memory is
short, but counts as resident as long as it is not.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WORDS = 20_000
DIMENSION = 384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--factories", nargs="+", default=["Flat", "HNSW32", "auto"])
    parser.add_argument("--max_memory", default="2GB")
    parser.add_argument("--work", help="folder for corpora and indexes (default: a temporary one)")
    parser.add_argument("--child", nargs=4, metavar=("CORPUS", "ENCODER", "FACTORY", "MEMORY"))
    args = parser.parse_args()
    if args.child:
        print(json.dumps(build(*args.child)))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        print(f"max_memory = {args.max_memory}\n")
        print("| passages | factory | segments | seconds | anonymous MB | resident MB | index MB |")
        print("|---|---|---|---|---|---|---|")
        make_encoder(Path(folder) / "encoder")
        for count in args.passages:
            corpus = make_corpus(Path(folder) / f"{count}.jsonl", count)
            for factory in args.factories:
                print(row(count, measured(corpus, Path(folder) / "encoder", factory, args.max_memory)), flush=True)
            corpus.unlink()


def row(count: int, r: dict[str, float]) -> str:
    return (
        f"| {count:,} | {r['factory']} | {r['segments']} | {r['seconds']:,.0f} | {r['anonymous']:,.0f} | "
        f"{r['resident']:,.0f} | {r['index']:,.0f} |"
    )


def measured(corpus: Path, encoder: Path, factory: str, memory: str) -> dict[str, float]:
    """A build in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.index_memory", "--child", str(corpus), str(encoder), factory, memory]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def build(corpus: str, encoder: str, factory: str, memory: str) -> dict[str, float | str]:
    """Build an index and watch this process."""
    from indexes import build_index
    from indexes.host_memory import resident_bytes

    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, resident_bytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    output = Path(corpus).with_suffix(".index")
    index = build_index(corpus, encoder, output, factory=factory, max_memory=memory, overwrite=True, progress=False)
    seconds = time.monotonic() - started
    done.set()
    watcher.join()
    return {
        "factory": index.manifest.factory,
        "segments": len(index.manifest.segments),
        "seconds": seconds,
        "anonymous": peak / 2**20,
        "resident": resident_bytes("VmHWM") / 2**20,
        "index": sum(record.bytes for record in index.manifest.files.values()) / 2**20,
    }


def make_corpus(file: Path, count: int) -> Path:
    draw = random.Random(0)
    with file.open("w") as stream:
        for number in range(count):
            words = " ".join(f"w{int(WORDS * draw.random() ** 3)}" for _ in range(60))
            stream.write(json.dumps({"id": str(number), "title": f"w{number % WORDS}", "text": words}) + "\n")
    return file


def make_encoder(folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {f"w{n}": n + 1 for n in range(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=DIMENSION)], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)


if __name__ == "__main__":
    main()
