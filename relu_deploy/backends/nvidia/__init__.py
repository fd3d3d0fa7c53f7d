"""What several backends need of an NVIDIA GPU: driver, CUDA runtime, DLPack."""
