"""The backend on CUDA devices that needs CuPy and no compiled module."""
