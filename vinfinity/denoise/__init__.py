"""Noise, noise schedules, samplers and guidance."""
