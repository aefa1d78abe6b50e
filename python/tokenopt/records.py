"""What plugins hand over: frozen records in SI base units, each figure with its source.

These classes are the public contract of the hooks in :mod:`tokenopt.hookspecs`. They carry data, never behaviour that
the search would call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal, Protocol

Confidence = Literal["vendor-datasheet", "measured", "third-party", "derived", "recalled", "assumed"]
Topology = Literal["switched", "mesh", "torus", "ring", "pcie", "single"]
Status = Literal["shipping", "announced"]
Term = Literal["on-demand", "reserved-1y", "reserved-3y", "rental", "spot", "marketplace", "owned"]

PEAK_FORMATS = ("bf16", "fp8", "int8", "fp4")
WEIGHT_FORMATS = ("bf16", "fp8", "int8", "mxfp4", "nvfp4", "int4")
KV_FORMATS = ("bf16", "fp8", "fp4")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure comes from.

    Attributes:
        reference: Document, page or repository path precise enough to find the figure again.
        confidence: How far to trust it; `recalled` figures were not re-read in a document.
        as_of: Date the document was read or published, ISO format, empty where unknown.
        note: What to distrust.
    """

    reference: str
    confidence: Confidence
    as_of: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One chip as it is rented or bought, with its share of the node around it.

    Attributes:
        key: Unique lower-case key, e.g. `b200-sxm`.
        vendor: Vendor key, e.g. `nvidia`.
        name: Name a buyer would search for.
        family: Architecture family whose calibration it shares, e.g. `hopper`, `cdna3`, `tpu`, `neuron`.
        launch_year: Year of general availability.
        hbm_bytes: Memory that software can use (driver-visible), bytes.
        hbm_bytes_per_s: Peak memory bandwidth, bytes/s.
        peak_flops: Dense peak per arithmetic format (`bf16`, `fp8`, `int8`, `fp4`), FLOP/s; an absent format has
            no fast path.
        scale_up_bytes_per_s: Fabric bandwidth per chip, one direction, bytes/s.
        scale_up_domain_chips: Chips that share the fast fabric.
        scale_up_topology: How they are wired.
        scale_out_bytes_per_s: Network bandwidth per chip, one direction, bytes/s.
        chips_per_node: Chips in one host.
        tdp_w: Power of the chip, W.
        system_w: All-in power per chip with its share of host and network, without facility overhead (PUE), W; None
            where nobody publishes it.
        capex_usd: Street price per chip, USD, None where unknown.
        matmul_flops: Best measured 16-bit matrix product, FLOP/s; None where nobody measured it.
        status: `announced` parts are left out of a search unless asked for.
        sources: Source per field name; the key `*` covers every field not named.
    """

    key: str
    vendor: str
    name: str
    family: str
    launch_year: int
    hbm_bytes: float
    hbm_bytes_per_s: float
    peak_flops: Mapping[str, float]
    scale_up_bytes_per_s: float
    scale_up_domain_chips: int
    scale_up_topology: Topology
    scale_out_bytes_per_s: float
    chips_per_node: int
    tdp_w: float
    sources: Mapping[str, Source]
    system_w: float | None = None
    capex_usd: float | None = None
    matmul_flops: float | None = None
    status: Status = "shipping"
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A model the catalogue knows.

    Attributes:
        key: Unique lower-case key, e.g. `llama-3.1-70b`.
        hf_id: Hugging Face repository, for people.
        architecture: The core's model specification (see `ModelSpec` in the Rust core), plain dicts and lists.
        published_parameters: Published total parameter count, None where not published.
        source: Where the architecture was read.
    """

    key: str
    hf_id: str
    architecture: Mapping[str, Any]
    published_parameters: float | None
    source: Source
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """Serving (or training) software on a set of accelerator families, with the calibration that describes it.

    Attributes:
        name: Engine key, e.g. `vllm`, `sglang`, `trtllm`.
        version: Version range the calibration data were measured with.
        as_of: Date of the newest measurement behind it; `--engine NAME@DATE` selects by it.
        families: Accelerator families it runs on; empty = every family of `vendor`.
        vendor: Vendor of those families.
        kind: What it does.
        weight_formats: Weight formats it serves.
        kv_formats: KV-cache formats it serves.
        parameters: Overrides of the global physical parameters (see `tokenopt.catalog.engines`), by name.
        source: Where the parameters come from.
        max_batch: Most requests that it runs at once on an attention rank unless told otherwise; None = no such limit.
    """

    name: str
    version: str
    as_of: str
    vendor: str
    families: tuple[str, ...]
    weight_formats: tuple[str, ...]
    kv_formats: tuple[str, ...]
    source: Source
    kind: Literal["serving", "training"] = "serving"
    parameters: Mapping[str, float] = field(default_factory=dict)
    max_batch: int | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A price for an accelerator.

    Attributes:
        accelerator: Accelerator key.
        provider: Who sells it.
        instance_type: Provider's name of the unit sold, empty where none.
        region: Provider's region, empty = any.
        term: What kind of promise the price is.
        usd_per_chip_hr: USD per chip and hour, tax excluded.
        chips_per_instance: Chips that must be taken together.
        as_of: Date the price was seen (ISO) or the source's own vague date.
        source: Where it was read.
        suspect: Why the figure is doubtful; empty = not. Suspect offers are shown, never ranked by default.
        minimum_instances: Least number of instances sold.
        fabric_chips: Chips under this offer that share the fast fabric; None = those of one instance. A per-chip price
            list of a provider that sells whole nodes sets it to the node.
        upfront_usd_per_chip: What of the price is paid before the first hour, USD per chip; it is already spread over
            the term inside `usd_per_chip_hr`.
        egress_usd_per_gb: Price of traffic out of the region, USD per 10^9 bytes, None where the source gives none.
        storage_usd_per_gb_month: Price of attached storage, USD per 10^9 bytes and month, None where not given.
    """

    accelerator: str
    provider: str
    instance_type: str
    region: str
    term: Term
    usd_per_chip_hr: float
    chips_per_instance: int
    as_of: str
    source: Source
    suspect: str = ""
    minimum_instances: int = 1
    fabric_chips: int | None = None
    upfront_usd_per_chip: float = 0.0
    egress_usd_per_gb: float | None = None
    storage_usd_per_gb_month: float | None = None

    def age_days(self, today: date) -> int | None:
        """Days between `as_of` and `today`, None where the source gives no full date."""
        try:
            return (today - date.fromisoformat(self.as_of)).days
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured operating point (columns as in the measured-data CSV files), with its source."""

    id: str
    values: Mapping[str, Any]
    source: Source


@dataclass(frozen=True, slots=True)
class Deployer:
    """A writer of deployment files for one target system (filled by a later release)."""

    name: str
    description: str
    template: str


@dataclass(frozen=True, slots=True)
class PricePage:
    """One raw answer of a price source, or one file.

    Attributes:
        name: Address or file name it came from, without keys.
        content: The bytes as they were sent, decompressed.
        variant: What the address says and the content does not, for instance the cloud of a catalogue file.
    """

    name: str
    content: bytes
    variant: str = ""


@dataclass(frozen=True, slots=True)
class FileShape:
    """What the kind of a file can be told from.

    Attributes:
        kind: Syntax.
        names: Column names of the header, or key names found near the top of the document.
    """

    kind: Literal["json", "csv"]
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class ParsedPrices:
    """What a parser made of raw pages.

    Attributes:
        offers: Usable offers; an empty `as_of` means the day the pages were fetched.
        skipped: Rows left out, counted by reason. A row that is not understood is never fatal.
    """

    offers: Sequence[Offer]
    skipped: Counter[str] = field(default_factory=Counter)


class PageFetcher(Protocol):
    """What `tokenopt prices update` hands to a source's `fetch`: HTTP with time limits, retries and conditions."""

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expects: Literal["json", "csv", "zip", "text"] = "json",
        variant: str = "",
    ) -> PricePage:
        """One answer of a GET request."""

    def post(self, url: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> PricePage:
        """One answer of a POST request with a JSON body."""


@dataclass(frozen=True, slots=True)
class PriceSource:
    """A live price source or file format. The one record that carries callables.

    They are called by `tokenopt prices update` and `tokenopt prices import` alone, when the user asks for new prices; a
    search never calls them and reads what they left in the store.

    Attributes:
        name: Name on the command line, lower case, e.g. `azure`.
        description: One line for people.
        parse: Raw pages and the user's exchange rates (USD per unit of a currency, by its code) to offers. Pure: no
            network, no files, no clock.
        recognises: Whether a file of this shape is one of this source's.
        fetch: Raw pages from the network; None for a format that is only imported from files. The second argument is
            when this source was last stored, None for never.
        needs: Credentials without which `fetch` cannot work, in words; empty = none.
        is_ready: Whether those credentials are there; a source that is not ready is left out unless it is named.
    """

    name: str
    description: str
    parse: Callable[[Sequence[PricePage], Mapping[str, float]], ParsedPrices]
    recognises: Callable[[FileShape], bool]
    fetch: Callable[[PageFetcher, datetime | None], Iterable[PricePage]] | None = None
    needs: str = ""
    is_ready: Callable[[], bool] | None = None
