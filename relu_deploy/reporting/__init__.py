"""What people see of a result: tables and progress on the terminal, and HTML pages. Takes plain results and computes none."""
