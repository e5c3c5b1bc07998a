"""The Snakefile's code: checked configuration, the notebook runner, and the source files that each notebook depends on."""
