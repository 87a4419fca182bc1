"""Sound: families of text-to-audio models, their front ends, their checkpoints, generation and saving."""
