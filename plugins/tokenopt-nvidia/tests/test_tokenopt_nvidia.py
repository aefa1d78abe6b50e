"""The conformance kit on this package's data."""

from __future__ import annotations

import tokenopt_nvidia
from tokenopt.testing import AcceleratorConformance, EngineConformance


class TestAccelerators(AcceleratorConformance):
    plugin = tokenopt_nvidia


class TestEngines(EngineConformance):
    plugin = tokenopt_nvidia
