"""A small text world with exact answers, and the tokenizer made from it."""
