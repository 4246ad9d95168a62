"""Learning the vocabulary from the corpus, and the rules shared with its use, which is model/tokenizer.py."""
