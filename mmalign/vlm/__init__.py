"""Vision-language models, and language models alone, as the training loop sees them."""
