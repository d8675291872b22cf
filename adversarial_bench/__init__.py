"""The kernel that `zoo`, `attacks` and `bench` share: errors, stable hashes, the version."""

__version__ = "0.1.0"
