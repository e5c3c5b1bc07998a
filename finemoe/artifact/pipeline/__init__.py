"""What the Snakefile stands on: checked configuration, the notebook runner, and what each notebook's code consists of."""
