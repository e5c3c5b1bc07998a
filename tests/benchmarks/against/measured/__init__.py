"""What runs inside a tree's process: one module for each kind of subject, each with a class `Measured`.

Every one has `expected`, the tokens of the model as it is (or None), `measure(variant)` and `close()`. All of it runs on this
checkout's `finemoe` and on the other's: it uses the public face, and `revisions` where that moved.
"""
