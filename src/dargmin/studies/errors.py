"""The one exception whose message a person at the command line is meant to read."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Data or an option that cannot be used: one sentence, with what to do about it."""
