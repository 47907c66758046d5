"""Trained weights, from files."""
