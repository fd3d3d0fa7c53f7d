"""How the Relus of a model behave: on data, in training and in a running server."""
