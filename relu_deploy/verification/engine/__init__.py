"""The audit of a TensorRT engine: its layers and tensors, held against the graph it was built from."""
