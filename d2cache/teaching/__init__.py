"""Small problems with exact answers, and the tokenizer and the model trained on them."""
