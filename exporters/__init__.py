"""Targets and drafters to ONNX graphs, parity checks, and the bundle build."""
