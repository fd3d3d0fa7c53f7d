"""What the server reports about itself: logs, statistics, metrics, traces, drift."""
