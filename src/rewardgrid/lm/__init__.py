"""The language model as tensors: architecture, sampling, adapters, and the draws they consume."""
