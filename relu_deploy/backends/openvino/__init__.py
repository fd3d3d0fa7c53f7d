"""Backend that runs OpenVINO on the CPU."""
