"""Settings of a run: frozen dataclasses, and YAML read with file and line in every message. No torch."""
