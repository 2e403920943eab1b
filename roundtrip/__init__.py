"""roundtrip trains two translation directions by letting them teach each other."""

__version__ = "0.1.0"
