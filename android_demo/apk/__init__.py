"""Builds and checks the Android app without Google's SDK."""
