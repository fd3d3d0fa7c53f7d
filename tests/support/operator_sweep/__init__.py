"""Generated cases of operators with unusual attributes, evaluated by several implementations.

`python -m operator_sweep --count 30` (with tests/support on PYTHONPATH) runs all of them at length; the test suite runs a few of
each operator.
"""
