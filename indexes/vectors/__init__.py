"""Vector stores and the lexical index: FAISS, Milvus and BM25."""
