"""The conformance kit on this package's sources."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tokenopt_prices_clouds
from tokenopt.testing import PriceSourceConformance

FIXTURES = Path(__file__).parent / "fixtures"


class TestSources(PriceSourceConformance):
    plugin = tokenopt_prices_clouds
    samples: ClassVar = {
        "lambda": [FIXTURES / "lambda.json"],
        "runpod": [FIXTURES / "runpod.json"],
        "vultr": [FIXTURES / "vultr_1.json", FIXTURES / "vultr_metal.json"],
        "offerings": [FIXTURES / "offerings.json"],
    }
