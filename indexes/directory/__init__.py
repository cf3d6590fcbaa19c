"""The index directory on disk: its manifest, its segments, and the versions that readers and writers see."""
