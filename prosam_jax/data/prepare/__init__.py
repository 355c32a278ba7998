"""Brings files into the form that training reads: benchmarks, and folders of one's own."""
