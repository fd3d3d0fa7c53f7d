"""Results for people: tables for the terminal and self-contained pages. Takes plain results and never computes them."""
