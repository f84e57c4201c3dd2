"""Measures packages: questions about pictures with known answers, through the code path that users call."""
