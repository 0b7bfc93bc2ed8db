"""How fast methods are here, beside peers in the same run: `goldline bench score`, `frames`, `fit` and `cost`.

Variants take turns, one call each, again and again, so that whatever else the machine does hits all alike; figures are
medians. Peers run in processes of their own, from a virtual environment of their own.
"""
