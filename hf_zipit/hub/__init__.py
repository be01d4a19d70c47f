"""The Hugging Face Hub: getting models from it, sending merges to it, and saying what went wrong."""
