#!/usr/bin/env bash
# transformers 5.23.0: a model from a GGUF file has plain float weights, and refuses to be saved as "quantized with gguf".
#
# One would guess that a model whose weights were unpacked on loading is a plain model, as it was up to version 5.1x. Of most
# architectures (all but Qwen 3.5 and LFM2) the weights are always unpacked, even where the file holds plain floats; the marks
# of a quantized model stay. What to do: `quantization_config=GgufConfig(dequantize=True)`, which also unpacks those that a
# kernel could use packed, and which then could not be trained. Deleting the marks by hand is not needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0
cd "$folder"
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>errors <<'PYTHON' || { cat errors; exit 1; }
import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, GgufConfig, Qwen2Config, Qwen2ForCausalLM

print("transformers", transformers.__version__)
config = Qwen2Config(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, tie_word_embeddings=True)
writer = gguf.GGUFWriter("model.gguf", "qwen2")
writer.add_context_length(128)
writer.add_embedding_length(32)
writer.add_feed_forward_length(64)
writer.add_block_count(1)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_token_list([f"token{i}" for i in range(32)])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 1)
for name, weight in Qwen2ForCausalLM(config).named_parameters():
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.detach().numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def saved(**options):
    model = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32, **options)
    types = {str(parameter.dtype) for parameter in model.parameters()}
    try:
        model.save_pretrained("saved")
    except ValueError as error:
        return types, str(error).split(" - ")[0]
    return types, "saved"


plain, flagged = saved(), saved(quantization_config=GgufConfig(dequantize=True))
print("by default       ", *plain)
print("dequantize=True  ", *flagged)
assert plain == ({"torch.float32"}, "The model is quantized with gguf and is not serializable")
assert flagged == ({"torch.float32"}, "saved")
PYTHON
