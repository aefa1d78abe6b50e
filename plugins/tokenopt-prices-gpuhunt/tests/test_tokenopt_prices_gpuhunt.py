"""The conformance kit on this package's sources."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tokenopt_prices_gpuhunt
from tokenopt.testing import PriceSourceConformance

FIXTURES = Path(__file__).parent / "fixtures"


class TestSources(PriceSourceConformance):
    plugin = tokenopt_prices_gpuhunt
    samples: ClassVar = {
        "gpuhunt": [FIXTURES / "gpuhunt_aws.csv", FIXTURES / "gpuhunt_gcp.csv"],
    }
