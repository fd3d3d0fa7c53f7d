"""The shipped models and the architectures that can be built by name."""
