"""From a graph to an engine: the builder, its progress, and the cache of engines."""
