"""Question files: reading them, checking their gold ids, and which questions fit the context of a model."""
