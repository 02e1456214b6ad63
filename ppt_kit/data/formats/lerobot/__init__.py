"""LeRobotDataset: read in v2.0, v2.1 and v3.0, written in v3.0."""
