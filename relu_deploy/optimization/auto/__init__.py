"""The search for the fastest variant that passes, over backends, precisions and settings of backends."""
