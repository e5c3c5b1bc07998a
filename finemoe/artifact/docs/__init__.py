"""The documentation's machinery: generated numbers, the page of claims, and the notebooks that the site shows.

`python -m finemoe.artifact.docs` renews every generated number in README.md and docs/.
"""
