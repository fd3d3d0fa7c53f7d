"""Comparison of the preprocessing in a manifest with the arrays that training code fed, picture by picture."""
