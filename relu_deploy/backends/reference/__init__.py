"""ONNX graphs evaluated by NumPy: in float64 for the truth, in float32 for its noise floor."""
