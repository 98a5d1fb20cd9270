__version__ = "0.1.0"  # pyproject.toml reads it here, without an import.
