#!/bin/bash
# pandas 3.1.1 and datasets 5.2.0: ids that set_index takes out of their column.
#
# One would guess: an index that was a column is a column again in the Parquet file, or for whoever reads the frame.
# What happens: pandas 3 makes a RangeIndex of evenly spaced whole numbers (10, 20, 30; before, only of counted rows), and
#   to_parquet keeps that as start, stop and step in the metadata of the file. 10, 20, 35 are written as a column.
#   Dataset.from_pandas and load_dataset("parquet") drop the metadata: the ids are gone, and nothing says so.
# What to do: call reset_index() before writing or converting; as a reader, look into schema.pandas_metadata.
set -eu
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT; cd "$W"
python3 -m venv venv; venv/bin/pip install --quiet datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1
HF_HOME="$W/hf" HF_HUB_OFFLINE=1 venv/bin/python - <<'P'
import datasets, pandas as pd, pyarrow.parquet as pq
print("pandas", pd.__version__, "datasets", datasets.__version__)
datasets.disable_progress_bars()
found = {}
for ids in ((10, 20, 30), (10, 20, 35)):
    frame = pd.DataFrame({"id": ids, "text": ["x", "y", "z"]}).set_index("id")
    frame.to_parquet("frame.parquet")
    schema = pq.read_schema("frame.parquet")
    dataset = datasets.Dataset.from_pandas(frame)
    loaded = datasets.load_dataset("parquet", data_files="frame.parquet", split="train")
    found[ids] = (schema.names, schema.pandas_metadata["index_columns"], dataset.column_names, loaded.column_names)
    print(ids, type(frame.index).__name__, *found[ids])
level = {"kind": "range", "name": "id", "start": 10, "stop": 40, "step": 10}
assert found[10, 20, 30] == (["text"], [level], ["text"], ["text"])
assert found[10, 20, 35] == (["text", "id"], ["id"], ["text", "id"], ["text", "id"])
P
