"""Conformance kit: what a vendor's own tests run on what its plugin hands over.

One class a hook. Subclass it in a test module and name the plugin:

>>> from tokenopt.testing import AcceleratorConformance
>>> class TestAccelerators(AcceleratorConformance):
...     plugin = None  # your module
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from tokenopt.catalog.engines import parameter_bounds
from tokenopt.catalog.refusals import accelerator_refusal, offer_refusal
from tokenopt.records import KV_FORMATS, PEAK_FORMATS, WEIGHT_FORMATS, Accelerator, Engine, Model, Offer

_PLAUSIBLE = {
    "hbm_bytes": (1e8, 1e13),
    "hbm_bytes_per_s": (1e11, 1e17),
    "tdp_w": (20.0, 50_000.0),
    "scale_up_bytes_per_s": (0.0, 1e13),
    "scale_out_bytes_per_s": (0.0, 1e13),
    "chips_per_node": (1, 1024),
    "scale_up_domain_chips": (1, 100_000),
    "launch_year": (2015, 2035),
}
"""Bounds outside which a unit was mistaken (GB for bytes, Gbit for GB)."""

_PLAUSIBLE_PEAK = (1e12, 1e17)


class _Conformance:
    plugin: ClassVar[Any] = None

    def _records(self, hook: str) -> list[Any]:
        function = getattr(self.plugin, hook, None)
        assert function is not None, f"the plugin has no hook {hook}"
        records = function()
        assert isinstance(records, Iterable), f"{hook} must return an iterable of records"
        records = list(records)
        assert records, f"{hook} returned nothing"
        return records


class AcceleratorConformance(_Conformance):
    """Invariants of `tokenopt_accelerators`."""

    def accelerators(self) -> list[Accelerator]:
        """What the plugin hands over."""
        return self._records("tokenopt_accelerators")

    def test_records_are_usable(self) -> None:
        """Every record is one that tokenopt accepts."""
        for record in self.accelerators():
            assert isinstance(record, Accelerator)
            assert accelerator_refusal(record) == ""

    def test_keys_are_unique(self) -> None:
        """No key twice."""
        keys = [record.key for record in self.accelerators()]
        assert len(keys) == len(set(keys))

    def test_units_are_si(self) -> None:
        """Figures lie where SI units put them."""
        for record in self.accelerators():
            for name, (low, high) in _PLAUSIBLE.items():
                assert low <= getattr(record, name) <= high, f"{record.key} {name}: is the unit right?"
            for name, value in record.peak_flops.items():
                assert name in PEAK_FORMATS, f"{record.key}: unknown format {name}"
                assert _PLAUSIBLE_PEAK[0] <= value <= _PLAUSIBLE_PEAK[1], f"{record.key} {name}: FLOP/s expected"

    def test_narrower_floats_are_not_slower(self) -> None:
        """A float format of fewer bits has at least the peak of the wider one."""
        for record in self.accelerators():
            peaks = [record.peak_flops[name] for name in ("bf16", "fp8", "fp4") if name in record.peak_flops]
            assert peaks == sorted(peaks), f"{record.key}: dense peaks must not fall with fewer bits"

    def test_every_figure_has_a_source(self) -> None:
        """Either each field or `*` has a source with a reference."""
        for record in self.accelerators():
            assert "*" in record.sources or {"hbm_bytes", "hbm_bytes_per_s", "peak_flops", "tdp_w"} <= set(
                record.sources
            ), f"{record.key}: no source for every figure"
            assert all(source.reference for source in record.sources.values())

    def test_topology_is_consistent(self) -> None:
        """A fabric has a rate and a second chip; a lone chip has neither."""
        for record in self.accelerators():
            if record.scale_up_topology == "single":
                assert record.scale_up_domain_chips == 1, record.key
            else:
                assert record.scale_up_bytes_per_s > 0, record.key
                assert record.scale_up_domain_chips > 1, record.key
            if record.system_w is not None:
                assert record.system_w >= record.tdp_w, f"{record.key}: all-in power is below the chip's"


class EngineConformance(_Conformance):
    """Invariants of `tokenopt_engines`."""

    def test_engines_are_usable(self) -> None:
        """Formats are known, dates are there, parameters lie within physical bounds."""
        bounds = parameter_bounds()
        for record in self._records("tokenopt_engines"):
            assert isinstance(record, Engine)
            assert record.weight_formats, record.name
            assert set(record.weight_formats) <= set(WEIGHT_FORMATS), record.name
            assert set(record.kv_formats) <= set(KV_FORMATS), record.name
            assert record.as_of, f"{record.name}: no date"
            assert record.source.reference, f"{record.name}: no source"
            for name, value in record.parameters.items():
                assert name in bounds, f"{record.name}: unknown parameter {name}"
                low, high = bounds[name]
                assert low <= value <= high, f"{record.name}: {name} is outside {low:g} to {high:g}"


class PriceConformance(_Conformance):
    """Invariants of `tokenopt_prices`."""

    def test_offers_are_usable(self) -> None:
        """Prices are positive and per chip, dated and sourced."""
        for record in self._records("tokenopt_prices"):
            assert isinstance(record, Offer)
            assert offer_refusal(record) == ""
            assert 0.005 <= record.usd_per_chip_hr <= 1000 or record.suspect, f"{record}: USD per chip and hour?"
            assert record.as_of, f"{record}: no date"
            assert record.source.reference, f"{record}: no source"
            assert record.fabric_chips is None or record.fabric_chips >= record.chips_per_instance


class ModelConformance(_Conformance):
    """Invariants of `tokenopt_models`."""

    def test_models_can_be_counted(self) -> None:
        """The core counts each model, within 2% of its published total."""
        from tokenopt.catalog.models import count_parameters

        for record in self._records("tokenopt_models"):
            assert isinstance(record, Model)
            counts = count_parameters(record.architecture)
            assert math.isfinite(counts["total_parameters"])
            if record.published_parameters:
                assert math.isclose(counts["total_parameters"], record.published_parameters, rel_tol=0.02), record.key
