"""A policy on a robot: actions at a fixed rate, the next chunk sampled while the present one runs."""
