"""The backend that Numba compiles, a stage a file: WIDTH groups at a time, all threads."""
