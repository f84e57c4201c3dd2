"""Primitive forms of one target: what a linear, a norm or an attention is made of."""
