"""The conformance kit on this package's sources."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tokenopt_prices_azure
from tokenopt.testing import PriceSourceConformance

FIXTURES = Path(__file__).parent / "fixtures"


class TestSources(PriceSourceConformance):
    plugin = tokenopt_prices_azure
    samples: ClassVar = {
        "azure": [FIXTURES / "azure_1.json", FIXTURES / "azure_2.json"],
    }
