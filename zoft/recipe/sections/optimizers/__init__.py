"""Update rules, one file each: recipe keys, defaults, citation, and the arithmetic on the scalars.

A rule needs no torch: it says how a weight moves in terms of `rule.Weight`, and
engine/optimizers/optimizer.py does so.
"""
