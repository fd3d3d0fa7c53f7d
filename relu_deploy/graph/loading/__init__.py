"""Reading of a model file that is not trusted: structure, resources, external data, functions, repairs."""
