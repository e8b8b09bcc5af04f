"""The embedded default: drawn scenes with exact ground truth, and three methods side by side."""
