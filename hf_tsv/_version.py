"""The version, alone in a module so that any other module can import it."""

__version__ = "0.2.0"
