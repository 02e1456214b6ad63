"""What a run takes of memory: counted, measured, and chosen by."""
