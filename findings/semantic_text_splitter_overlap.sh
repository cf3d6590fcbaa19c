#!/usr/bin/env bash
# semantic-text-splitter 0.33.1: an overlap of 16 tokens repeats nothing, and a wrapped line is a better place than a sentence.
#
# One would guess that `overlap=16` repeats about 16 tokens of the chunk before, and that text wrapped at 70 columns is cut
# where the same text without newlines is. Instead whole pieces of the level at which a chunk is cut are repeated or none:
# between sentences of 17 words nothing; and every newline ranks above the end of a sentence, so chunks end with half sentences.
# To do: cut without overlap and add the end of the chunk before yourself; show the splitter blanks in place of newlines
# within a paragraph, and take the chunks by `chunk_indices` from the text itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check semantic-text-splitter==0.33.1
"$folder/venv/bin/python" - <<'P'
import textwrap
from importlib.metadata import version
from itertools import pairwise

from semantic_text_splitter import TextSplitter

print("semantic-text-splitter", version("semantic-text-splitter"))
count = lambda text: len(text.split())
text = " ".join(" ".join([f"Ship{i}", *["sails"] * 15, "home."]) for i in range(60))
pieces = TextSplitter.from_callback(count, 128, overlap=16).chunk_indices(text)
overlaps = [max(0, start + len(piece) - after) for (start, piece), (after, _) in pairwise(pieces)]
print("sentences of 17 words, chunks of 128, overlap of 16: characters repeated", overlaps)

sentences = " ".join(f"Sentence {i} tells of old ships and of what they carried home." for i in range(40))
wrapped = textwrap.fill(sentences, 70)
def whole(text):
    chunks = TextSplitter.from_callback(count, 64).chunks(text)
    return sum(chunk.endswith("home.") for chunk in chunks), len(chunks)
flowing, hard = whole(sentences), whole(wrapped)
print("chunks that end with a sentence: without newlines %d of %d, wrapped at 70 columns %d of %d" % (*flowing, *hard))
assert not any(overlaps), "it repeats something now"
assert flowing[0] == flowing[1] and hard[0] < hard[1], "wrapped lines are no longer preferred"
P
