"""Posterior inference over interaction structures from trajectories."""
