"""The compiled loops of numba_cpu.py, one algorithm a file."""
