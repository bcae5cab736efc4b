"""C++ kernels for CPUs: attention over packed steps, and what stands between matrix products.

torch's operators do the same in several passes each; on a CPU these passes, not the products, are
what a small model spends its time on. Compiled on the machine itself when a model is loaded there
for the first time (`build.py`), because the instructions to use are the machine's.
"""
