"""Help, the version and argument errors are answered without importing torch, transformers or faiss."""

import os
import subprocess
import sys
from pathlib import Path

# One process for all commands, since each start costs a second: what is imported once stays imported, so the first
# command that imports a heavy library is the one that is named.
SCRIPT = """
import contextlib, io, sys
from rag.cli import COMMANDS, main

HEAVY = {"torch", "transformers", "faiss", "datasets", "numpy", "sentence_transformers", "accelerate", "peft"}
runs = [["--help"], ["--version"], ["trian"], ["index"]]
runs += [[*name.split(), "--help"] for name in COMMANDS]
runs += [[*name.split(), "--no_such_option", "1"] for name in COMMANDS]
runs += [["train", "--train_dataset", "q", "--output_dir", "run", "--rounds", "0"]]
runs += [["ask", "--index", "i", "who?", "--selector.num_selected", "0"], ["ask", "who?", "--decoding.top_p", "2"]]
for words in runs:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    expected = 0 if words[-1] in ("--help", "--version") else 2
    assert code == expected, (words, code)
    heavy = HEAVY & {name.partition(".")[0] for name in sys.modules}
    assert not heavy, (words, heavy)
print(len(runs))
"""


def test_no_heavy_library_is_imported_before_it_is_needed() -> None:
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 50
