"""What one would use instead of koopcore, written as its experts would, and how they compare."""
