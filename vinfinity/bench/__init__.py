"""Measurements of runs and their parts: time, memory and messages."""
