"""The HTTP connection: admission, limits, sockets and graceful close."""
