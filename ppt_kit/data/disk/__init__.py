"""Bytes on disk: plain rows, decoded rows kept, video frames, memory for batches."""
