"""Evaluation: metrics over questions, intervals, paired tests, order bias and attribution."""
