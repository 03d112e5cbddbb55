"""The backend on CUDA devices whose kernels are in csrc/cuda."""
