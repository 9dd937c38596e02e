"""Hand a result on: merge, export, replay, push."""
