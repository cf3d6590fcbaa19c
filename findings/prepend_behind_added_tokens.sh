#!/usr/bin/env bash
# tokenizers 0.23.3: the normalizer `Prepend` (Llama 2's files) puts its blank behind every added token, the pre-tokenizer
# `Metaspace(prepend_scheme="first")` (newer conversions of the same models) at the beginning of a text alone.
#
# One would guess that both encode a text the same. They do so for a text alone, and not for one behind a control token, as
# an answer in a chat is: "<a>Rome" has other tokens. What to do: encode what continues a prompt together with the end of the
# prompt, and take the prompt's tokens away; neither `encode(text)` nor a fixed anchor such as a newline gives the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

print("tokenizers", tokenizers.__version__)
found = {}
for name in ("Prepend", "Metaspace"):
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "▁", "x", "▁x"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "x")], unk_token="<unk>"))
    if name == "Prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(["<a>"])
    found[name] = [tokenizer.encode(text).tokens for text in ("x", "<a>x")]
    print(f"{name:10}", *found[name])
assert found == {"Prepend": [["▁x"], ["<a>", "▁x"]], "Metaspace": [["▁x"], ["<a>", "x"]]}
PYTHON
