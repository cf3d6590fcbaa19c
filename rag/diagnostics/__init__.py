"""Diagnostics: checks of the installation, and inspection of prompts, permutations and batches."""
