"""A file per verb; each holds its `command`."""
