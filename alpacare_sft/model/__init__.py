"""The base model, its tokenizer and prompt, and the adapter on it."""
