"""Cut long passages into chunks that are counted in the encoder's own tokens."""

from collections.abc import Iterator

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from indexes.corpus import Passage
from indexes.errors import UsageError


class Chunker:
    """Cuts a passage at paragraph, sentence or word boundaries, the largest that fit.

    Only the text is counted, without the title and the special tokens that an encoder adds: leave room for
    them.
    """

    def __init__(
        self, tokenizer: Tokenizer | PreTrainedTokenizerFast, *, max_tokens: int = 128, overlap: int = 16
    ) -> None:
        """Prepare a chunker.

        Args:
            tokenizer: Counts the tokens; it is copied, so its truncation setting does not matter.
            max_tokens: The most tokens in a chunk.
            overlap: The most tokens that a chunk repeats from the one before; whole sentences or words are
                repeated, so it may be fewer.

        Raises:
            UsageError: A number is out of range, or the tokenizer is not a fast one.
        """
        if max_tokens < 1 or not 0 <= overlap < max_tokens:
            raise UsageError(
                "A chunk needs max_tokens of at least 1 and an overlap from 0 to below max_tokens, but "
                f"max_tokens={max_tokens} and overlap={overlap} came. Lower the overlap or raise max_tokens."
            )
        self.max_tokens = max_tokens
        self.overlap = overlap
        self._splitter = TextSplitter.from_huggingface_tokenizer(
            _unlimited_copy(tokenizer), max_tokens, overlap=overlap
        )

    def chunk(self, passage: Passage) -> Iterator[Passage]:
        """The chunks of a passage in order, each under its title.

        A passage that fits is returned as it is. Otherwise chunk n has the id ``{id}#{n}``, counted from 0.
        """
        texts = self._splitter.chunks(passage.text)
        if len(texts) < 2:
            yield passage
            return
        for number, text in enumerate(texts):
            yield Passage(f"{passage.id}#{number}", passage.title, text)


def _unlimited_copy(tokenizer: Tokenizer | PreTrainedTokenizerFast) -> Tokenizer:
    backend = tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else tokenizer
    if not isinstance(backend, Tokenizer):
        raise UsageError(
            "A chunker needs a tokenizers.Tokenizer or a fast transformers tokenizer, but "
            f"{type(tokenizer).__name__} came. Load it with AutoTokenizer.from_pretrained(..., "
            "use_fast=True)."
        )
    copy = Tokenizer.from_str(backend.to_str())
    # A tokenizer that truncates would call every text short enough.
    copy.no_truncation()
    copy.no_padding()
    return copy
