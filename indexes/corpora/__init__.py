"""Corpora: documents from files, folders, addresses and data sets become passages, whole or cut into chunks."""
