"""Philox and the sweeps over weights: reference (torch, literal), cpu (numba)."""
