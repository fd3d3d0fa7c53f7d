"""Element-wise arithmetic, reductions and linear algebra."""
