"""``koopcore demo``: oscillator networks trained, predicted, compared and drawn."""
