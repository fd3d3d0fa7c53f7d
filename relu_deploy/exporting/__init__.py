"""From a PyTorch module, an exported program or an ONNX file to a bundle."""
