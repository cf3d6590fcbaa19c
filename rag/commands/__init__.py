"""The commands of `rag`: a new module with a table `COMMANDS` is a new command; heavy imports happen when it runs."""
