"""Conformance kit: what a vendor's own tests run on what its plugin hands over.

One class a hook. Subclass it in a test module and name the plugin:

>>> from tokenopt.testing import AcceleratorConformance
>>> class TestAccelerators(AcceleratorConformance):
...     plugin = None  # your module

`tokenopt plugins check PACKAGE` runs the classes of every hook that a package implements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from tokenopt.catalog.engines import parameter_bounds, parameter_refusal
from tokenopt.catalog.plain import plain_record
from tokenopt.catalog.refusals import (
    PLAUSIBLE,
    PLAUSIBLE_PEAK,
    accelerator_refusal,
    deployer_refusal,
    engine_refusal,
    measurement_refusal,
    model_refusal,
    offer_refusal,
    price_source_refusal,
)
from tokenopt.errors import PriceSourceError
from tokenopt.hookspecs import HOOK_API_VERSION
from tokenopt.records import (
    KV_FORMATS,
    PEAK_FORMATS,
    WEIGHT_FORMATS,
    Accelerator,
    Deployer,
    Engine,
    Measurement,
    Model,
    Offer,
    PricePage,
    PriceSource,
    Source,
)

SMALL_MODEL = "qwen3-0.6b"
"""Bundled model with which a plugin's chips are searched: it fits on anything that is worth shipping."""


class _Conformance:
    plugin: ClassVar[Any] = None
    hook: ClassVar[str] = ""
    record: ClassVar[type] = object

    def records(self) -> list[Any]:
        """What the plugin hands over, each record plain data of the right type."""
        assert self.plugin is not None, "name your module: plugin = my_plugin"
        function = getattr(self.plugin, self.hook, None)
        assert function is not None, f"the plugin has no hook {self.hook}"
        records = function()
        assert isinstance(records, Iterable), f"{self.hook} must return an iterable of records"
        found = list(records)
        assert found, f"{self.hook} returned nothing"
        for record in found:
            assert type(record) is self.record, f"{self.hook} returned a {type(record).__name__}"
            try:
                plain_record(record)
            except ValueError as error:
                raise AssertionError(f"{_label(record)}: {error}") from None
        return found

    def test_the_hook_api_version_is_stated(self) -> None:
        """`TOKENOPT_HOOK_API_VERSION` says for which hooks the plugin was written."""
        stated = getattr(self.plugin, "TOKENOPT_HOOK_API_VERSION", None)
        assert stated == HOOK_API_VERSION, (
            f"TOKENOPT_HOOK_API_VERSION is {stated!r}, expected {HOOK_API_VERSION}: without it a plugin loads into any "
            "tokenopt, also one whose hooks have changed"
        )

    def test_the_hook_answers_the_same_twice(self) -> None:
        """A hook hands over data: asked again it says the same."""
        if self.record is not PriceSource:
            assert self.records() == self.records()


class AcceleratorConformance(_Conformance):
    """Invariants of `tokenopt_accelerators`."""

    hook = "tokenopt_accelerators"
    record = Accelerator

    def accelerators(self) -> list[Accelerator]:
        """What the plugin hands over."""
        return self.records()

    def test_records_are_usable(self) -> None:
        """Every record is one that tokenopt accepts."""
        for record in self.accelerators():
            _accept(accelerator_refusal(record))

    def test_keys_are_unique(self) -> None:
        """No key twice."""
        keys = [record.key for record in self.accelerators()]
        assert len(keys) == len(set(keys))

    def test_units_are_si(self) -> None:
        """Figures lie where SI units put them."""
        for record in self.accelerators():
            for name, (low, high) in PLAUSIBLE.items():
                value = getattr(record, name)
                assert value is None or low <= value <= high, f"{record.key} {name}: is the unit right?"
            for name, value in record.peak_flops.items():
                assert name in PEAK_FORMATS, f"{record.key}: unknown format {name}"
                assert PLAUSIBLE_PEAK[0] <= value <= PLAUSIBLE_PEAK[1], f"{record.key} {name}: FLOP/s expected"

    def test_narrower_floats_are_not_slower(self) -> None:
        """A float format of fewer bits has at least the peak of the wider one."""
        for record in self.accelerators():
            peaks = [record.peak_flops[name] for name in ("bf16", "fp8", "fp4") if name in record.peak_flops]
            assert peaks == sorted(peaks), f"{record.key}: dense peaks must not fall with fewer bits"

    def test_peaks_are_dense(self) -> None:
        """Halving the bits at most quadruples the peak: more is a figure with sparsity."""
        for record in self.accelerators():
            bf16 = record.peak_flops["bf16"]
            measured = record.matmul_flops
            assert measured is None or measured <= bf16, f"{record.key}: a measured matrix product beats the dense peak"
            for name, most in (("fp8", bf16 * 4.5), ("fp4", bf16 * 10.0)):
                peak = record.peak_flops.get(name, 0.0)
                assert peak <= most, f"{record.key}: {name} is {peak:.3g} beside {bf16:.3g} in bf16: with sparsity?"

    def test_every_figure_has_a_source(self) -> None:
        """Either each field or `*` has a source with a reference."""
        for record in self.accelerators():
            assert "*" in record.sources or {"hbm_bytes", "hbm_bytes_per_s", "peak_flops", "tdp_w"} <= set(
                record.sources
            ), f"{record.key}: no source for every figure"
            assert all(source.reference.strip() for source in record.sources.values())

    def test_topology_is_consistent(self) -> None:
        """A fabric has a rate and a second chip; a lone chip has neither."""
        for record in self.accelerators():
            if record.scale_up_topology == "single":
                assert record.scale_up_domain_chips == 1, f"{record.key}: a single chip shares its fabric with nobody"
            else:
                assert record.scale_up_bytes_per_s > 0, f"{record.key}: a fabric without a rate"
                assert record.scale_up_domain_chips > 1, f"{record.key}: a {record.scale_up_topology} of one chip"
            assert record.scale_up_bytes_per_s < record.hbm_bytes_per_s or record.hbm_bytes_per_s > 1e13, (
                f"{record.key}: the fabric is as fast as the memory: is it per chip and one direction?"
            )
            if record.system_w is not None:
                assert record.system_w >= record.tdp_w, f"{record.key}: all-in power is below the chip's"

    def test_a_search_with_this_plugin_alone_works(self) -> None:
        """Every shipping chip can be ranked, with the plugin's own engines where it has some."""
        import tokenopt
        from tokenopt.plugins import registry_of

        chips = [record for record in self.accelerators() if record.hbm_bytes > _SMALL_MODEL_BYTES]
        registry = registry_of([self.plugin, _generic_engines(tuple({(c.vendor, c.family) for c in chips}))])
        assert registry.problems == []
        result = tokenopt.search(
            model=SMALL_MODEL, hardware=[c.key for c in chips], price={c.key: 2.0 for c in chips}, announced=True,
            isl=128, osl=128, registry=registry,
        )  # fmt: skip
        ranked = {solution.accelerator for solution in result.by_accelerator}
        assert ranked == {c.key for c in chips}, f"not ranked: {sorted({c.key for c in chips} - ranked)}"
        for solution in result.by_accelerator:
            assert math.isfinite(solution.usd_per_m_tokens)
            assert solution.usd_per_m_tokens > 0


class EngineConformance(_Conformance):
    """Invariants of `tokenopt_engines`."""

    hook = "tokenopt_engines"
    record = Engine

    def test_engines_are_usable(self) -> None:
        """Formats are known, dates are there, a source is named."""
        for record in self.records():
            _accept(engine_refusal(record))
            assert set(record.weight_formats) <= set(WEIGHT_FORMATS), record.name
            assert set(record.kv_formats) <= set(KV_FORMATS), record.name
            assert record.source.reference.strip(), f"{record.name}: no source"

    def test_calibrations_lie_within_physical_bounds(self) -> None:
        """Parameters exist and keep to what physics allows."""
        bounds = parameter_bounds()
        for record in self.records():
            _accept(parameter_refusal(record))
            for name, value in record.parameters.items():
                low, high = bounds[name]
                assert low <= value <= high, f"{record.name}: {name} is {value:g}, outside {low:g} to {high:g}"

    def test_families_belong_to_described_chips(self) -> None:
        """A family that no chip of the plugin has is misspelt; plugins without chips are not held to it."""
        hook = getattr(self.plugin, AcceleratorConformance.hook, None)
        if hook is None:
            return
        known = {(chip.vendor, chip.family) for chip in hook()}
        for record in self.records():
            for family in record.families:
                assert (record.vendor, family) in known, (
                    f"{record.name}: no chip of {record.vendor} has family {family}"
                )


class PriceConformance(_Conformance):
    """Invariants of `tokenopt_prices`."""

    hook = "tokenopt_prices"
    record = Offer

    def test_offers_are_usable(self) -> None:
        """Prices are positive and per chip, dated and sourced."""
        for record in self.records():
            _accept(offer_refusal(record))
            assert 0.005 <= record.usd_per_chip_hr <= 1000 or record.suspect, f"{record}: USD per chip and hour?"
            assert record.source.reference.strip(), f"{record}: no source"
            assert record.fabric_chips is None or record.fabric_chips >= record.chips_per_instance


class PriceSourceConformance(_Conformance):
    """Invariants of `tokenopt_price_sources`.

    Attributes:
        samples: Small files in the shape of each source, by its name; those of one source are parsed together.
    """

    hook = "tokenopt_price_sources"
    record = PriceSource
    samples: ClassVar[Mapping[str, Sequence[Path]]] = {}

    def test_sources_are_usable(self) -> None:
        """Names are unique; what needs credentials says which, and can tell whether they are there."""
        found = self.records()
        for record in found:
            _accept(price_source_refusal(record))
            assert record.description.strip(), f"{record.name}: no description"
            assert bool(record.needs) == (record.is_ready is not None), (
                f"{record.name}: needs and is_ready belong together"
            )
            if record.is_ready is not None:
                assert record.is_ready() in (True, False)
        assert len({record.name for record in found}) == len(found)

    def test_nothing_in_is_nothing_out(self) -> None:
        """Without pages there are no offers."""
        for record in self.records():
            assert list(record.parse([], {}).offers) == []

    def test_garbage_is_refused_or_counted(self) -> None:
        """A body that is not what it should be is a `PriceSourceError` or no offers, never another exception."""
        for record in self.records():
            for content in (b"", b"<html>", b"{", b"[]", b"{}", b"null", b"7", b"a,b\n1,2\n", b"\xff\xfe\x00"):
                try:
                    found = record.parse([PricePage("garbage", content, "aws")], {})
                except PriceSourceError:
                    continue
                assert list(found.offers) == [], f"{record.name} made offers of {content!r}"

    def test_samples_are_recognised_and_read(self) -> None:
        """Each sample is told to be of its source, and of no other of the plugin; its offers are usable."""
        from tokenopt.prices.importer import shape_of
        from tokenopt.prices.sources import offer_defect

        sources = {record.name: record for record in self.records()}
        assert set(self.samples) <= set(sources), "samples of a source that the plugin does not have"
        for name, files in self.samples.items():
            for file in files:
                shape = shape_of(file.name, file.read_bytes())
                assert [other for other, source in sources.items() if source.recognises(shape)] == [name], file.name
            found = sources[name].parse([PricePage(file.name, file.read_bytes()) for file in files], {})
            assert found.offers, f"{name}: no offer in {', '.join(file.name for file in files)}"
            _accept(next((defect for offer in found.offers if (defect := offer_defect(offer))), ""))

    def test_samples_cut_short_make_no_unusable_offer(self) -> None:
        """Half a body is refused or read in part, never misread."""
        from tokenopt.prices.sources import offer_defect

        sources = {record.name: record for record in self.records()}
        for name, files in self.samples.items():
            for file in files:
                content = file.read_bytes()
                try:
                    found = sources[name].parse([PricePage(file.name, content[: len(content) // 2])], {})
                except PriceSourceError:
                    continue
                _accept(next((defect for offer in found.offers if (defect := offer_defect(offer))), ""))


class ModelConformance(_Conformance):
    """Invariants of `tokenopt_models`."""

    hook = "tokenopt_models"
    record = Model

    def test_models_can_be_counted(self) -> None:
        """The core counts each model, within 2% of its published total."""
        from tokenopt.catalog.models import count_parameters

        for record in self.records():
            _accept(model_refusal(record))
            counts = count_parameters(record.architecture)
            assert math.isfinite(counts["total_parameters"])
            if record.published_parameters:
                assert math.isclose(counts["total_parameters"], record.published_parameters, rel_tol=0.02), record.key


class MeasurementConformance(_Conformance):
    """Invariants of `tokenopt_measurements`."""

    hook = "tokenopt_measurements"
    record = Measurement

    def test_measurements_are_usable(self) -> None:
        """Each has an identifier of its own, values and a source."""
        found = self.records()
        for record in found:
            _accept(measurement_refusal(record))
            assert record.values, f"{record.id}: no values"
            assert record.source.reference.strip(), f"{record.id}: no source"
        assert len({record.id for record in found}) == len(found)


class DeployerConformance(_Conformance):
    """Invariants of `tokenopt_deployers`."""

    hook = "tokenopt_deployers"
    record = Deployer

    def test_deployers_are_usable(self) -> None:
        """Names are unique, each has a template."""
        found = self.records()
        for record in found:
            _accept(deployer_refusal(record))
            assert record.template.strip(), f"{record.name}: no template"
        assert len({record.name for record in found}) == len(found)


CLASSES: Mapping[str, type[_Conformance]] = {
    kind.hook: kind
    for kind in (
        AcceleratorConformance, EngineConformance, PriceConformance, PriceSourceConformance, ModelConformance,
        MeasurementConformance, DeployerConformance,
    )
}  # fmt: skip
"""The class of each hook."""

_SMALL_MODEL_BYTES = 4e9
"""Chips of less memory (wafers of static memory in many pieces) are not searched one by one."""


def _accept(refusal: str) -> None:
    assert not refusal, refusal


def _label(record: Any) -> str:
    return next((str(name) for field in ("key", "name", "id") if (name := getattr(record, field, ""))), "a record")


@cache
def _generic_engines(families: tuple[tuple[str, str], ...]) -> ModuleType:
    """A plugin with one engine for each family, so that chips without engines of their own can be searched."""
    from tokenopt.hookspecs import hookimpl

    module = ModuleType("tokenopt_conformance_engines")
    module.TOKENOPT_HOOK_API_VERSION = HOOK_API_VERSION  # type: ignore[attr-defined]

    @hookimpl
    def tokenopt_engines() -> list[Engine]:
        return [
            Engine(
                name="conformance", version="0", as_of="2026-01-01", vendor=vendor, families=(family,),
                weight_formats=("bf16",), kv_formats=("bf16",), source=Source("conformance kit", "assumed"),
            )
            for vendor, family in families
        ]  # fmt: skip

    module.tokenopt_engines = tokenopt_engines  # type: ignore[attr-defined]
    return module
