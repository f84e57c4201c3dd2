"""Kernels stated once as TVM computations, scheduled per CPU variant, and the lowering that calls them."""
