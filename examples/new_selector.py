"""A new selector: the retriever's scores plus the words that question and passage share, with one learned weight.

    python examples/new_selector.py

Registering the class is all: training, checkpoints, bundles and evaluation use it, and bundles record its kind. In a
package of your own, name the module as an entry point of the group ``dro_rag.plugins``.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from indexes import Corpus, Encoder, Passage, build_index
from rag import RAG
from retriever import SELECTORS, Candidates, PlackettLuceSelector, SelectorConfig
from training import DROConfig, DROTrainer, QAExample

PASSAGES = [
    Passage("p0", "Hamlet", "Shakespeare wrote the play Hamlet around the year 1600."),
    Passage("p1", "Danube", "The Danube flows from Germany into the Black Sea."),
    Passage("p2", "Faust", "Goethe wrote Faust, a play about a scholar and the devil."),
]
QUESTIONS = [
    QAExample("q0", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q1", "which river flows into the Black Sea?", ("the Danube",), ("p1",)),
]


@SELECTORS.register("word_overlap")
class WordOverlapSelector(PlackettLuceSelector):
    """Logit of a passage: its standardised retriever score + weight x number of words it shares with the question."""

    uses_retriever_scores = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.modules["overlap"] = torch.nn.Linear(1, 1, bias=False).to(self.language_model.device)
        torch.nn.init.zeros_(self.modules["overlap"].weight)  # untrained, it ranks as the retriever does

    def logits(self, candidates: Candidates, *, teach_retriever: bool = True) -> torch.Tensor:
        prior = self.prior_scores(candidates, teach_retriever=teach_retriever)
        words = set(candidates.question.lower().split())
        shared = [[float(len(words & set(p.contents.lower().split())))] for p in candidates.passages]
        return prior + self.modules["overlap"](torch.tensor(shared, device=prior.device)).squeeze(-1)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        index = build_index(Corpus.from_passages(PASSAGES), Encoder.from_pretrained("tiny"), Path(folder) / "index")
        config = SelectorConfig(kind="word_overlap", num_candidates=3, num_selected=2)
        rag = RAG.create(index=index, selector=config)
        DROTrainer(rag, DROConfig(rounds=1), train_dataset=QUESTIONS, output_dir=f"{folder}/run").train()
        print("learned weight:", float(rag.selector.modules["overlap"].weight.detach()))
        rag.save_pretrained(Path(folder) / "bundle")
        print(RAG.from_pretrained(Path(folder) / "bundle").answer("who wrote Hamlet?").text)
