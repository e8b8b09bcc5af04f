"""Checkpoints, processors and adapters: loaded whole, saved whole, restored exactly."""
