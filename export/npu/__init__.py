"""The same package on an NPU: fixed graphs, static ranges, context binaries."""
