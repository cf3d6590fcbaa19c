#!/bin/bash
# One would guess that a column of lists survives a CSV file: pandas writes it, and ast.literal_eval, which is how such
# columns (and the question files of DPR) are read, takes it back. What was a numpy array in the table, as every list
# is that pandas read from Parquet, is written as numpy prints it: without commas. Python joins two texts that stand
# side by side, so two answers come back as one, without an error.
# What to do: Parquet or JSON lines instead of CSV; or column.map(lambda a: json.dumps(list(a))) before to_csv. A reader
# has to count the texts that are written, since the parsed literal does not show how many they were.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1
cd "$work"
"$work/venv/bin/python" - <<'P'
import ast
import sys

import numpy
import pandas
import pyarrow

print("numpy", numpy.__version__, "pandas", pandas.__version__, "pyarrow", pyarrow.__version__)
answers = ["New York", "NYC"]
pandas.DataFrame({"answers": [answers]}).to_parquet("q.parquet")
pandas.read_parquet("q.parquet").to_csv("q.csv", index=False)
written = pandas.read_csv("q.csv")["answers"][0]
read = ast.literal_eval(written)
print("written:", written)
print("read:   ", read)
sys.exit(0 if written == "['New York' 'NYC']" and read == ["New YorkNYC"] else 1)
P
