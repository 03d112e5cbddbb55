"""Dictionaries of observables ψ(x), one kind a file."""
