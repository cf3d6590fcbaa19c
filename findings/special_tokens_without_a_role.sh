#!/usr/bin/env bash
# transformers 5.23.0: a token that is marked special need not be among `all_special_tokens`; `decode(skip_special_tokens=True)`
# leaves it out all the same.
#
# One would guess that `all_special_ids` are the ids that `skip_special_tokens` skips. They are those with a role (eos_token,
# pad_token, extra_special_tokens ...) alone; the tokens around a turn of Gemma, Phi-3 or the first Llama-3-Instruct have none.
# What to do: take every token of `added_tokens_decoder` whose `special` is true.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PYTHON'
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

print("transformers", transformers.__version__)
tokenizer = Tokenizer(models.WordLevel({"Rome": 0, "[UNK]": 1}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.add_special_tokens(["<eos>", "<end_of_turn>"])
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained("saved")
loaded = AutoTokenizer.from_pretrained("saved")
marked = [token.content for token in loaded.added_tokens_decoder.values() if token.special]
shown = loaded.decode(loaded("Rome <end_of_turn>")["input_ids"], skip_special_tokens=True)
print("all_special_tokens", loaded.all_special_tokens)
print("marked special    ", marked)
print("decoded without special tokens:", repr(shown))
assert loaded.all_special_tokens == ["<eos>"]
assert marked == ["<eos>", "<end_of_turn>"]
assert shown.strip() == "Rome"
PYTHON
