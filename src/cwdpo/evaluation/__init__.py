"""Measure models outside training: how likely they find answers, what they answer, who wins, what pairs give away."""
