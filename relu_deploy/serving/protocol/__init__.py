"""The Open Inference Protocol v2: routes, HTTP, gRPC and their codecs."""
