"""The conformance kit on this package's data."""

from __future__ import annotations

import tokenopt_more
from tokenopt.testing import AcceleratorConformance, EngineConformance


class TestAccelerators(AcceleratorConformance):
    plugin = tokenopt_more


class TestEngines(EngineConformance):
    plugin = tokenopt_more
