#!/bin/bash
# datasets 5.2.0: a column of mixed types.
#
# One would guess: load_dataset("json") gives back the values of the file; a text stays a text.
# What happens: a column with texts and numbers becomes Json(), stored as Arrow's extension type arrow.json (also in
#   Parquet and in save_to_disk). Plain Arrow hands out the JSON text, "x2" with its quotes. A text that is JSON by itself is
#   stored without quotes, so datasets reads it back as something else: "007" is 7, "1e5" is 100000.0, "true" is True.
# What to do: decode arrow.json columns when reading Arrow or Parquet, with a strict JSON decoder, and take a number that
#   is not written as its value would be for the text it was. Better: write ids as texts throughout.
set -eu
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT; cd "$W"
python3 -m venv venv; venv/bin/pip install --quiet datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
HF_HOME="$W/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'P'
import json, datasets, pyarrow.parquet as pq
print("datasets", datasets.__version__)
datasets.disable_progress_bars()
with open("rows.jsonl", "w") as file:
    for id_ in (1, "x2", "007", "1e5", "true"):
        file.write(json.dumps({"id": id_}) + "\n")
dataset = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
dataset.to_parquet("rows.parquet")
stored = pq.read_table("rows.parquet")["id"]
print("feature", dataset.features["id"], "type", stored.type)
print("stored ", stored.to_pylist())
print("decoded", dataset["id"][:])
assert dataset.features["id"] == datasets.Json() and str(stored.type) == "extension<arrow.json>"
assert stored.to_pylist() == ["1", '"x2"', "007", "1e5", "true"]
assert dataset["id"][:] == [1, "x2", 7, 100000.0, True]
P
