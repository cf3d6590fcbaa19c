"""The tables of the command line."""

from rag.text_tables import cell, interval, table


def test_table_aligns_columns_and_prints_cells_as_they_are() -> None:
    rows = [["exact_match", "0.5000", "p0"], ["[bold]f1[/bold]", "-", "p10"], ["recall", "+12.0 [1, 2]", ""]]
    lines = table(["metric", "mean", "id"], rows).splitlines()
    assert lines == [
        "metric                   mean  id",
        "exact_match            0.5000  p0",
        "[bold]f1[/bold]             -  p10",
        "recall           +12.0 [1, 2]",
    ]


def test_wide_tables_are_not_wrapped() -> None:
    assert len(table(["a", "b"], [["x" * 200, "y" * 200]]).splitlines()) == 2


def test_cells() -> None:
    assert [cell(value) for value in (None, 0.25, 3, "x")] == ["-", "0.2500", "3", "x"]
    assert [interval(ends) for ends in (None, (0.1, 0.25))] == ["-", "[0.1000, 0.2500]"]
