"""The engine as torch operators."""
