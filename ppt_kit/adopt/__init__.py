"""Weights of ppt_learning as a run folder of ours: the same outputs where its parts are here, the rest in a list."""
