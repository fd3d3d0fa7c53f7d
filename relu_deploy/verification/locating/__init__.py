"""The node at fault: of the graph, or of the backend that runs it."""
