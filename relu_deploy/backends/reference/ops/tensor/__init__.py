"""Operators that move, cut, sort or convert elements."""
