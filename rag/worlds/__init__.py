"""Synthetic data: invented worlds of passages and questions, and an encyclopedia of real facts."""
