"""Prices: the store of fetched offers, live sources, file imports, the user's own quotes, the owner's cost.

A search reads :mod:`tokenopt.prices.store` and never the network; `tokenopt prices update` and `import` write it.
"""
