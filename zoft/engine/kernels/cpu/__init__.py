"""The kernels in numba."""
