"""The ONNX graph in NumPy, in float64 or float32."""
