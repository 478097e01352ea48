"""Targets and drafters to ONNX graphs, what PyTorch computes in their place, and graphs to engines."""
