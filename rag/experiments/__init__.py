"""Experiments: recipes (training methods), sweeps over them, and the demo experiment."""
