"""The conformance kit on this package's data."""

from __future__ import annotations

import tokenopt_amd
from tokenopt.testing import AcceleratorConformance, EngineConformance


class TestAccelerators(AcceleratorConformance):
    plugin = tokenopt_amd


class TestEngines(EngineConformance):
    plugin = tokenopt_amd
