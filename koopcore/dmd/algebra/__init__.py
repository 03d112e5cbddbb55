"""Products of snapshots, eigenvalues, modes, amplitudes and exponents: arrays, no options."""
