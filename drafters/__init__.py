"""PyTorch drafters, built of parts: fusion, specialists, alignment, drafting."""
