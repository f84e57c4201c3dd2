"""Readers of checkpoints, one file per format; `export/checkpoint.py` is their facade."""
