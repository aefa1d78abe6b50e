"""The cheapest hardware, layout and batching to serve or train a model, and how sure we are.

>>> import tokenopt
>>> result = tokenopt.search(model="gpt-oss-120b", slo_ms=50, target_tps=1e6)  # doctest: +SKIP
>>> result.best[0].usd_per_m_tokens  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenopt.breakdown import explain as explain
    from tokenopt.posttraining import PosttrainResult as PosttrainResult
    from tokenopt.posttraining import posttrain as posttrain
    from tokenopt.posttraining_request import PosttrainRequest as PosttrainRequest
    from tokenopt.problem import SearchRequest as SearchRequest
    from tokenopt.serve import SearchResult as SearchResult
    from tokenopt.serve import Solution as Solution
    from tokenopt.serve import search as search
    from tokenopt.simulation import Simulation as Simulation
    from tokenopt.simulation import simulate as simulate
    from tokenopt.training import TrainResult as TrainResult
    from tokenopt.training import train as train
    from tokenopt.training_request import TrainRequest as TrainRequest

_LAZY = {
    "PosttrainRequest": "tokenopt.posttraining_request",
    "PosttrainResult": "tokenopt.posttraining",
    "posttrain": "tokenopt.posttraining",
    "SearchRequest": "tokenopt.problem",
    "SearchResult": "tokenopt.serve",
    "Solution": "tokenopt.serve",
    "explain": "tokenopt.breakdown",
    "search": "tokenopt.serve",
    "Simulation": "tokenopt.simulation",
    "simulate": "tokenopt.simulation",
    "TrainRequest": "tokenopt.training_request",
    "TrainResult": "tokenopt.training",
    "train": "tokenopt.training",
}
"""Public names and the modules that define them; imported on first use so that `import tokenopt` costs nothing."""

__all__ = [
    "PosttrainRequest", "PosttrainResult", "SearchRequest", "SearchResult", "Simulation", "Solution", "TrainRequest",
    "TrainResult", "__version__", "explain", "posttrain", "search", "simulate", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("tokenopt")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tokenopt' has no attribute {name!r}")
