"""Measure models outside training: likelihoods, answers, pairwise wins, and what pairs give away."""
