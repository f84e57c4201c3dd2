"""Norms, activation quantisation and the other kernels that touch each value once."""
