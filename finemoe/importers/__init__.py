"""Public routing of real models, read in its publishers' formats."""
