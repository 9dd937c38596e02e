"""report.html, loss.png, tables of runs."""
