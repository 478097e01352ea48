"""Engine sessions behind one protocol: ONNX Runtime, TensorRT and TensorRT-RTX."""
