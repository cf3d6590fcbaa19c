"""Two new metrics: the similarity of answer and golden answer in characters, and the length of the answer.

    python examples/new_metric.py

Registering them is all: the evaluation file holds them with their intervals, and tables, comparisons and reports show
them. In a package of your own, name the module as an entry point of the group ``dro_rag.plugins``, so that every `rag`
command and every worker process of a sweep loads it.
"""

from difflib import SequenceMatcher
from pathlib import Path
from tempfile import TemporaryDirectory

from indexes import Corpus, Encoder, Passage, build_index
from rag import RAG, Answer, evaluate
from rag.evaluation.evaluation_file import evaluation_file, read_evaluation, write_results
from rag.evaluation.metric import METRICS, Metric, accepted_answers, metric_label, metric_of
from rag.text_tables import table
from retriever import SelectorConfig
from training import QAExample

PASSAGES = [
    Passage("p0", "Hamlet", "Shakespeare wrote the play Hamlet around the year 1600."),
    Passage("p1", "Danube", "The Danube flows from Germany into the Black Sea."),
]
QUESTIONS = [
    QAExample("q0", "who wrote Hamlet?", ("Shakespeare", "William Shakespeare"), ("p0",)),
    QAExample("q1", "which river flows into the Black Sea?", ("the Danube",), ("p1",)),
]


def similarity(answer: Answer, example: QAExample) -> float:
    """Ratcliff and Obershelp's similarity in [0, 1] to the closest golden answer."""
    return max(SequenceMatcher(None, answer.text, golden).ratio() for golden in accepted_answers(example))


def words(answer: Answer, example: QAExample) -> float:
    """Words of the answer."""
    return float(len(answer.text.split()))


METRICS.register("similarity", Metric(name="similarity", label="Similarity", function=similarity))
METRICS.register("words", Metric(name="words", label="Words", unit="count", higher_is_better=False, function=words))

if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        corpus, encoder = Corpus.from_passages(PASSAGES), Encoder.from_pretrained("tiny")
        index = build_index(corpus, encoder, Path(folder) / "index", progress=False)
        rag = RAG.create(index=index, selector=SelectorConfig(num_candidates=2, num_selected=2))
        file = evaluation_file(rag, evaluate(rag, QUESTIONS, progress=False), name="tiny base model")
        write_results(file.to_dict(), Path(folder) / "evaluation.json")
        read = read_evaluation(Path(folder) / "evaluation.json")
    shown = {name: metric for name in read.metrics if (metric := metric_of(name))}
    rows = [[metric_label(n), m.format(read.metrics[n], read.intervals[n])] for n, m in shown.items()]
    print(table(["metric", "mean [95 % interval]"], rows))
