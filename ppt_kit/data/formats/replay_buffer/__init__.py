"""The zarr replay buffer: read as others write it, written as plain bytes."""
