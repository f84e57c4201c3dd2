"""edgevlm beside other runtimes on one machine: the same model, the same tokens, the same threads, in turn."""
