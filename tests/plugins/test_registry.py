"""A broken neighbour is named and skipped; everybody else's data stay as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tokenopt import plugins
from tokenopt.errors import PluginError
from tokenopt.plugins import load_plugins

GOOD = """
from tokenopt.catalog.accelerators import load_accelerators_toml
from tokenopt.hookspecs import hookimpl

TEXT = '''
[[accelerator]]
key = "{key}"
vendor = "acme"
name = "Acme"
family = "acme"
launch_year = 2026
hbm_usable_gib = 100
hbm_tb_per_s = {bandwidth}
peak_tflops = {{ bf16 = {peak} }}
scale_up = {{ tech = "AcmeLink", gb_per_s = 400, domain_chips = 8, topology = "switched" }}
scale_out_gbit_per_s = 400
chips_per_node = 8
tdp_w = 700
[accelerator.sources]
"*" = {{ reference = "acme.example data sheet", confidence = "vendor-datasheet" }}
'''

@hookimpl
def tokenopt_accelerators():
    return load_accelerators_toml(TEXT)
"""

HOSTILE = {
    "raises at import": ("raise RuntimeError('boom')", "boom"),
    "missing dependency": ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
    "raises in a hook": (
        "from tokenopt.hookspecs import hookimpl\n@hookimpl\ndef tokenopt_accelerators():\n    raise ValueError('bad day')",
        "bad day",
    ),
    "never returns": (
        "import time\nfrom tokenopt.hookspecs import hookimpl\n"
        "@hookimpl\ndef tokenopt_prices():\n    while True:\n        time.sleep(0.01)",
        "took longer than",
    ),
    "returns another type": (
        "from tokenopt.hookspecs import hookimpl\n@hookimpl\ndef tokenopt_accelerators():\n    return ['h100']",
        "expected Accelerator",
    ),
    "returns no iterable": (
        "from tokenopt.hookspecs import hookimpl\n@hookimpl\ndef tokenopt_accelerators():\n    return 5",
        "expected records",
    ),
    "returns nothing": (
        "from tokenopt.hookspecs import hookimpl\n@hookimpl\ndef tokenopt_engines():\n    return None",
        "expected records",
    ),
    "peak is not a number": (GOOD.format(key="acme-1", bandwidth="nan", peak="1000"), "hbm_tb_per_s is nan"),
    "peak is negative": (GOOD.format(key="acme-1", bandwidth="3", peak="-5"), "bf16 is -5"),
    "too many offers": (
        "from tokenopt.hookspecs import hookimpl\nfrom tokenopt.records import Offer, Source\n"
        "OFFER = Offer('h100-sxm', 'p', '', '', 'on-demand', 0.01, 8, '2026-01-01', Source('x', 'assumed'))\n"
        "@hookimpl\ndef tokenopt_prices():\n    return (OFFER for _ in range(10**6))",
        "more than",
    ),
    "misspelt hook": (
        "from tokenopt.hookspecs import hookimpl\n@hookimpl\ndef tokenopt_acelerators():\n    return []",
        "tokenopt_acelerators",
    ),
    "another API": ("TOKENOPT_HOOK_API_VERSION = 99", "hook API version 99"),
    "claims another's key": (
        GOOD.format(key="h100-sxm", bandwidth="3", peak="1000"),
        "already provided by tokenopt-nvidia",
    ),
    "price of zero": (
        "from tokenopt.hookspecs import hookimpl\nfrom tokenopt.records import Offer, Source\n"
        "@hookimpl\ndef tokenopt_prices():\n"
        "    return [Offer('h100-sxm', 'p', '', '', 'on-demand', 0.0, 8, '2026-01-01', Source('x', 'assumed'))]",
        "usd_per_chip_hr is 0.0",
    ),
}


def _content(registry: plugins.PluginRegistry) -> tuple[object, ...]:
    return registry.accelerators, registry.engines, registry.offers, registry.models


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_plugin_is_named_and_changes_nothing(
    name: str, fake_package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "TIME_LIMIT_S", 1.0)
    before = _content(load_plugins())
    source, message = HOSTILE[name]
    fake_package("hostile-plugin", source, version="6.6")
    registry = load_plugins()
    assert _content(registry) == before
    status = next(status for status in registry.plugins if status.name == "hostile-plugin")
    assert status.status == "skipped"
    assert "hostile-plugin 6.6" in status.message
    assert message in status.message
    assert status.message in registry.problems
    with pytest.raises(PluginError, match="hostile-plugin"):
        _content(load_plugins(strict=True))


def test_a_good_plugin_joins(fake_package: Callable[..., None]) -> None:
    fake_package("acme", GOOD.format(key="acme-1", bandwidth="3", peak="1000"))
    registry = load_plugins()
    assert registry.accelerators["acme-1"].peak_flops["bf16"] == 1e15
    assert registry.problems == []


def test_an_exact_set_of_plugins_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.LOAD_VARIABLE, "amd")
    registry = load_plugins()
    assert {chip.vendor for chip in registry.accelerators.values()} == {"amd"}


def test_the_installed_catalogue_is_wide() -> None:
    registry = load_plugins()
    assert registry.problems == []
    vendors = {chip.vendor for chip in registry.accelerators.values()}
    assert len(registry.accelerators) >= 35
    assert len(vendors) >= 6
    unknown = {offer.accelerator for offer in registry.offers} - set(registry.accelerators)
    assert not unknown, "offers for accelerators nobody describes"
