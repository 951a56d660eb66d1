"""dargmin inside other libraries."""

from dargmin.interop import optimistix

__all__ = ["optimistix"]
