"""The commands of `rag`, a module for each topic; heavy imports happen when one runs."""
