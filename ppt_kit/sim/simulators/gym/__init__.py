"""Environments of the Gymnasium API, seen through one adapter."""
