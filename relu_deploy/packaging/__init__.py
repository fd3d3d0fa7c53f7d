"""What other engines deploy: Triton, KServe, Docker."""
