"""Packages for other engines: Triton model repositories, KServe manifests, contexts of container images."""
