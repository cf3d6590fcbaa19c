"""Vectors in a FAISS index, described by a factory string."""
