"""Text from the model: generation in batches, the decoding step, sampling, streamed text, int8 weights."""
