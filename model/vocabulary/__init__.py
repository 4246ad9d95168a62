"""How the vocabulary is learned from the corpus, and what using and learning it share (model/tokenizer.py uses it)."""
