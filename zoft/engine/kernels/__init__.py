"""The sweeps over weights, three times: reference (literal torch), cpu (numba), triton (GPU)."""
