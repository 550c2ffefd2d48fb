"""A board has no torch."""

raise ModuleNotFoundError("No module named 'torch'", name="torch")
