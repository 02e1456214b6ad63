"""Launched runs: which processes a run has, who starts them, who ends them."""
