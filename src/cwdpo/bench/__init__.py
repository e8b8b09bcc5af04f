"""Step time, FLOPs and memory beside TRL, on the same model, rows and threads."""
