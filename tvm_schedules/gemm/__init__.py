"""Matrix products on quantised weights."""
