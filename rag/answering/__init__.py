"""Answer modes: how an answer is produced from the selected passages."""
