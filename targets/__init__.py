"""PyTorch decoders of the supported targets, and their weights from checkpoints."""
