"""Integer and quantized operators."""
