"""The conformance kit on this package's data."""

from __future__ import annotations

import tokenopt_aws
from tokenopt.testing import AcceleratorConformance, EngineConformance


class TestAccelerators(AcceleratorConformance):
    plugin = tokenopt_aws


class TestEngines(EngineConformance):
    plugin = tokenopt_aws
