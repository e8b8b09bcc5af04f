"""Learning dynamics: what one step on one answer does to the others, in theory and measured on a model."""
