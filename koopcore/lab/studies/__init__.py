"""Scaling studies behind ``koopcore bench``: each asks one question and checks its answers."""
