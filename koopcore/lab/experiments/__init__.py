"""Reproductions of published results: settings, cells that are kept on disk, a table, a picture."""
