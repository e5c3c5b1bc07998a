"""What the paper's figures claim, tested on the tables behind them: the trend by code, the verdict by the rule of claims.py.

Each module holds the tests, functions from a table to a table of flags, and the claim, a function from the tests to a `Claim`.
Comparisons of systems are paired over requests: FineMoE and a baseline serve the same ones, and a gain counts where its whole
95 % interval is above zero. Real routing (gpt-oss-20b) is tested separately where it was recorded; the miniatures cannot outvote
it.
"""
