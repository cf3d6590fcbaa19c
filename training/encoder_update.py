"""Train the whole encoder on the posterior of a round, and encode the corpus again.

    pairs   <- per question each candidate that was probably selected, with one that was not
    encoder <- MultipleNegativesRankingLoss over them, by sentence-transformers' own trainer, by its own similarity
    index   <- the same passages, encoded by it

The question adapter learns without this and leaves the index as it is; `DROConfig.train_encoder` turns both on.

Legend: n candidates.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import BatchSamplers
from sentence_transformers.util import dot_score
from transformers import PrinterCallback

from indexes.directory.builder import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import DOT, Encoder
from retriever.retriever import Retriever
from training.config import DROConfig
from training.posterior import Posterior

logger = logging.getLogger(__name__)

POSITIVE_ABOVE = 0.5
"""A candidate whose posterior probability of being selected is at least this is a positive."""
NEGATIVE_BELOW = 0.05
"""One whose probability is at most this may be a hard negative."""


def train_encoder_and_reindex(
    retriever: Retriever,
    posteriors: Sequence[Posterior],
    folder: Path,
    config: DROConfig,
    *,
    seed: int,
    is_main_process: bool = True,
    progress: bool = True,
) -> None:
    """Write `folder/encoder`, the retriever's trained further, and `folder/index`, its passages encoded by it.

    Args:
        retriever: Left as it is; `Retriever.replace` takes what was written.
        posteriors: Of one E-step.
        folder: New.
        config: Its `encoder_training`.
        seed: Of the batches.
        is_main_process: All processes train together, one writes.
        progress: Show progress bars.
    """
    old, index = retriever.encoder, retriever.index
    model = copy.deepcopy(old.model)
    if pairs := training_pairs(posteriors):
        _train(model, old, pairs, folder, config, seed)
    else:
        logger.warning("No candidate was probably read (at least %.2f); the encoder stays as it is.", POSITIVE_ABOVE)
    if not is_main_process:
        return
    name = str((folder / "encoder").resolve())
    new = Encoder(
        model,
        name=name,
        question_prompt=old.question_prompt,
        passage_prompt=old.passage_prompt,
        similarity=old.similarity,
        mixed=old.mixed,
    )
    new.save_pretrained(name)
    build_index(
        index.corpus,
        new,
        folder / "index",
        factory=index.manifest.factory,
        store=index.manifest.store_kind,
        store_options=index.manifest.store_options,
        bm25=bool(index.manifest.bm25),
        allow_untested=bool(index.vectors.properties.untested),  # the kind that is in use already
        progress=progress,
    )


def training_pairs(posteriors: Sequence[Posterior]) -> list[dict[str, str]]:
    """Triples `question`, `positive`, `negative`: the negative is the best-ranked candidate that was not selected."""
    triples: list[dict[str, str]] = []
    for posterior in posteriors:
        marginals_n, passages = posterior.marginals(), posterior.candidates.passages
        ranked = posterior.candidates.scores.argsort(descending=True).tolist()
        unread = next((i for i in ranked if float(marginals_n[i]) <= NEGATIVE_BELOW), None)
        if unread is None:
            continue
        triples += [
            {
                "question": posterior.example.question,
                "positive": passages[i].contents,
                "negative": passages[unread].contents,
            }
            for i in ranked
            if float(marginals_n[i]) >= POSITIVE_ABOVE
        ]
    return triples


def _train(
    model: SentenceTransformer,
    encoder: Encoder,
    pairs: Sequence[dict[str, str]],
    folder: Path,
    config: DROConfig,
    seed: int,
) -> None:
    """Train the model in place, with the prompts of `encoder`."""
    model.model_card_data.generate_widget_examples = False  # no model card is written here
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "logs"),
        num_train_epochs=config.encoder_training.num_train_epochs,
        per_device_train_batch_size=config.encoder_training.per_device_train_batch_size,
        learning_rate=config.encoder_training.learning_rate,
        warmup_steps=0.1,
        seed=seed % (1 << 31),
        # A passage that is one question's positive may not be another's negative of the same batch.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        prompts={
            "question": encoder.question_prompt,
            "positive": encoder.passage_prompt,
            "negative": encoder.passage_prompt,
        },
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=model.device.type == "cpu",
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(list(pairs)),
        loss=_loss(model, encoder.similarity),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()


def _loss(model: SentenceTransformer, similarity: str) -> MultipleNegativesRankingLoss:
    """In-batch softmax over the similarity that the index is searched by; the default loss takes the cosine, times 20.

    Dot products are not multiplied, as in the documentation of the loss (sentence-transformers 6.2) and as
    msmarco-distilbert-base-dot-v5 was trained.
    """
    if similarity == DOT:
        return MultipleNegativesRankingLoss(model, scale=1.0, similarity_fct=dot_score)
    return MultipleNegativesRankingLoss(model)


def open_trained_retrieval(folder: Path, like: Encoder) -> tuple[PassageIndex, Encoder]:
    """What `train_encoder_and_reindex` wrote, with the prompts and on the device of `like`."""
    encoder = Encoder.from_pretrained(
        folder / "encoder",
        question_prompt=like.question_prompt,
        passage_prompt=like.passage_prompt,
        device=str(like.model.device),
        dtype=like.dtype,
        similarity=like.similarity,
        trust_remote_code=like.trust_remote_code,  # the same code runs already
    )
    return PassageIndex.open(folder / "index", encoder=encoder), encoder
