"""The mathematics: directions, probes, estimators, optimizers."""
