"""The hooks a plugin may implement. Entry-point group: ``tokenopt``.

Hooks return data: iterables of the frozen records of :mod:`tokenopt.records`. Adding an argument to a hook is
compatible; renaming or removing one is not and raises :data:`HOOK_API_VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from tokenopt.records import Accelerator, Deployer, Engine, Measurement, Model, Offer, PriceSource

PROJECT = "tokenopt"
HOOK_API_VERSION = 1
"""A plugin module may set ``TOKENOPT_HOOK_API_VERSION``; a different major number is refused with a clear message."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class TokenoptSpecs:
    """Namespace of the hook specifications."""

    @hookspec
    def tokenopt_accelerators(self) -> Iterable[Accelerator]:
        """Accelerators this plugin describes.

        Returns:
            Records in SI units; every figure needs a source, keys must not clash with another plugin's.

        Example:
            >>> from tokenopt.hookspecs import hookimpl
            >>> class Plugin:
            ...     @hookimpl
            ...     def tokenopt_accelerators(self):
            ...         return []
            >>> list(Plugin().tokenopt_accelerators())
            []
        """
        raise NotImplementedError

    @hookspec
    def tokenopt_models(self) -> Iterable[Model]:
        """Models this plugin adds to the catalogue.

        Returns:
            Records whose `architecture` the core can count.
        """
        raise NotImplementedError

    @hookspec
    def tokenopt_engines(self) -> Iterable[Engine]:
        """Engines and their calibrations for this vendor's accelerators.

        Returns:
            Records; several dates of one engine may stand side by side, the newest is the default.
        """
        raise NotImplementedError

    @hookspec
    def tokenopt_prices(self) -> Iterable[Offer]:
        """Offers this source knows, read from local data only (search never touches the network).

        Returns:
            Offers; `usd_per_chip_hr` excludes tax.
        """
        raise NotImplementedError

    @hookspec
    def tokenopt_price_sources(self) -> Iterable[PriceSource]:
        """Live price sources and price file formats this plugin can read.

        The one hook whose records carry callables: fetching and parsing differ by source and cannot be said in data.
        They run only when the user types `tokenopt prices update` or `tokenopt prices import`; what they yield goes to
        the store as plain offers, and searches read those.

        Returns:
            Sources; names must not clash with another plugin's.
        """
        raise NotImplementedError

    @hookspec
    def tokenopt_measurements(self) -> Iterable[Measurement]:
        """Measured operating points this plugin ships.

        Returns:
            Records for validation and for the measured basis.
        """
        raise NotImplementedError

    @hookspec
    def tokenopt_deployers(self) -> Iterable[Deployer]:
        """Deployment-file writers this plugin ships.

        Returns:
            Records; none are built in yet.
        """
        raise NotImplementedError
