"""The conformance kit of tokenopt on this package's data: `pip install . && pytest`."""

from __future__ import annotations

import tokenopt_template
from tokenopt.testing import AcceleratorConformance, EngineConformance, PriceConformance


class TestAccelerators(AcceleratorConformance):
    plugin = tokenopt_template


class TestEngines(EngineConformance):
    plugin = tokenopt_template


class TestPrices(PriceConformance):
    plugin = tokenopt_template
