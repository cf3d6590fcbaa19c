#!/usr/bin/env bash
# transformers 5.23.0: a tokenizer from a GGUF file whose "tokenizer.ggml.pre" it does not know splits text as GPT-2's does,
# without a word; and it has one token more than the file.
#
# One would guess that an unknown pre-tokenizer is an error or a warning. SmolLM's ("smollm": every digit by itself, then as
# GPT-2) is one of those that are missing: "\n\n1" has two tokens for its line breaks where the model's own tokenizer has one.
# And a token "<|endoftext|>" is added behind the vocabulary where the file has none, so its id has no row in the embedding.
# What to do: set the pre-tokenizer that the name stands for (llama.cpp, src/llama-vocab.cpp), and leave out the added tokens
# whose ids are not below the length of "tokenizer.ggml.tokens".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0
cd "$folder"
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>errors <<'PYTHON' || { cat errors; exit 1; }
import gguf
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

print("transformers", transformers.__version__)
tokens = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
digits = pre_tokenizers.Digits(individual_digits=True)
own = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[("Ċ", "Ċ")]))
own.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])

writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list(tokens)
writer.add_token_types([3] + [1] * (len(tokens) - 1))
writer.add_token_merges(["Ċ Ċ"])
writer.add_eos_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

read = PreTrainedTokenizerFast.from_pretrained(".", gguf_file="model.gguf")
expected, found = own.encode("a\n\n1").tokens, read.tokenize("a\n\n1")
print("as the file names it  ", expected)
print("as transformers splits", found)
print("tokens in the file, tokens of the tokenizer:", len(tokens), len(read))
assert expected == ["a", "ĊĊ", "1"]
assert found == ["a", "Ċ", "Ċ", "1"]
assert len(read) == len(tokens) + 1 and read.convert_tokens_to_ids("<|endoftext|>") == len(tokens)
PYTHON
