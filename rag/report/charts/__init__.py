"""One module per chart; a new module with a registered chart is found without being listed anywhere."""
