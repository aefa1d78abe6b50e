"""The conformance kit on this package's sources."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import tokenopt_prices_aws
from tokenopt.testing import PriceSourceConformance

FIXTURES = Path(__file__).parent / "fixtures"


class TestSources(PriceSourceConformance):
    plugin = tokenopt_prices_aws
    samples: ClassVar = {
        "aws": [FIXTURES / "aws_offer.json", FIXTURES / "aws_query.json"],
        "ec2instances": [FIXTURES / "ec2instances.json"],
        "neuron": [FIXTURES / "neuron.csv"],
    }
