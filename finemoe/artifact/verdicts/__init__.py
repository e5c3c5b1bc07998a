"""What the paper's latency figures claim, tested on tables of requests: the trend by code, the verdict by the rule of claims.py.

Every comparison is paired over requests: FineMoE and a baseline serve the same ones, and a gain counts where its whole 95 %
interval lies above zero. Real routing (gpt-oss-20b) is tested by itself where it was recorded; the miniatures cannot outvote it.
"""
