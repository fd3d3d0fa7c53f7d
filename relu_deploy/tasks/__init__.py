"""What the outputs of a model mean, and how they are scored."""
