"""F1 on the validation questions, round by round."""

from rag.report.round_chart import RoundChart

chart = RoundChart("eval_f1", title="F1", unit="mean F1", text="Overlap with the golden answer in words.", order=20)
