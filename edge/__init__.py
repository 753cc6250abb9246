"""edge: put transformers on phones, Jetsons and CPUs."""

__version__ = "0.1.0"
