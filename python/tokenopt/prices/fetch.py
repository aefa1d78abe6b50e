"""Fetching pages of a price source: time limits, retries, conditional requests, answers cut short.

Used by `tokenopt prices update` alone. httpx is imported when a client is opened.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from tokenopt.errors import PriceSourceError
from tokenopt.records import PricePage

if TYPE_CHECKING:
    import httpx

Expects = Literal["json", "csv", "zip", "text"]

USER_AGENT = "tokenopt-prices/1"
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 5
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
MAX_BODY_BYTES = 2 * 1024**3
MAX_CACHED_BODY_BYTES = 16 * 1024**2
"""Longer bodies are not kept for conditional requests; sources that have them say when nothing is new."""

WHOLE_CHECK_BYTES = 64 * 1024**2
"""JSON beyond this is not parsed once more just to see that it is whole; its parser will tell."""

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class CachedPage:
    """An answer kept for the next conditional request.

    Attributes:
        etag: Validator the server sent, empty = none.
        last_modified: Date the server sent, empty = none.
        content: The body.
    """

    etag: str
    last_modified: str
    content: bytes


@dataclass(slots=True)
class FetchStatistics:
    """What fetching took."""

    requests: int = 0
    retries: int = 0
    not_modified: int = 0
    fetched_bytes: int = 0


@dataclass(slots=True)
class HttpFetcher:
    """Fetches the pages of one source. A context manager.

    Attributes:
        cached: Answers of earlier runs by address.
        on_page: Called with each page, for progress.
        sleep: Waits, seconds; tests replace it.
        jitter: A number from 0 to 1 that spreads retries; tests replace it.
    """

    cached: Mapping[str, CachedPage] = field(default_factory=dict)
    on_page: Callable[[PricePage], None] | None = None
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    max_attempts: int = MAX_ATTEMPTS
    statistics: FetchStatistics = field(default_factory=FetchStatistics)
    to_cache: dict[str, CachedPage] = field(default_factory=dict)
    _client: httpx.Client | None = None

    def __enter__(self) -> HttpFetcher:
        import httpx

        self._client = httpx.Client(
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            follow_redirects=True,
            headers={"User-Agent": USER_AGENT},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        expects: Expects = "json",
        variant: str = "",
    ) -> PricePage:
        """One answer of a GET request, from the last run where the server says it has not changed.

        Args:
            url: Address; keys belong into `params` or `headers`, they are kept out of names and messages.
            params: Query parameters.
            headers: Further headers.
            expects: What the body must be; one that is not whole is fetched again.
            variant: Handed on to the page.

        Returns:
            The page.

        Raises:
            PriceSourceError: The server refuses, or does not answer in time and in full after all attempts.
        """
        import httpx

        full = httpx.URL(url, params=dict(params)) if params else httpx.URL(url)
        key = _without_keys(full)
        known = self.cached.get(key)
        sent = dict(headers or {})
        if known is not None:
            if known.etag:
                sent["If-None-Match"] = known.etag
            if known.last_modified:
                sent["If-Modified-Since"] = known.last_modified
        status, answer, content = self._send("GET", full, _place(key), sent, None, expects, known)
        if status == 304 and known is not None:
            self.statistics.not_modified += 1
            self.to_cache[key] = known
            content = known.content
        else:
            etag, modified = answer.get("etag", ""), answer.get("last-modified", "")
            if (etag or modified) and len(content) <= MAX_CACHED_BODY_BYTES:
                self.to_cache[key] = CachedPage(etag, modified, content)
        return self._done(PricePage(key, content, variant))

    def post(self, url: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> PricePage:
        """One answer of a POST request with a JSON body (for GraphQL).

        Raises:
            PriceSourceError: As for :meth:`get`.
        """
        import httpx

        full = httpx.URL(url)
        key = _without_keys(full)
        _, _, content = self._send("POST", full, _place(key), dict(headers or {}), body, "json", None)
        return self._done(PricePage(key, content))

    def _done(self, page: PricePage) -> PricePage:
        if self.on_page is not None:
            self.on_page(page)
        return page

    def _send(
        self,
        method: str,
        url: httpx.URL,
        shown: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        expects: Expects,
        known: CachedPage | None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        if self._client is None:
            raise PriceSourceError("the fetcher is closed")
        trouble = ""
        for attempt in range(self.max_attempts):
            wait_s = self._backoff(attempt)
            self.statistics.requests += 1
            try:
                with self._client.stream(method, url, headers=dict(headers), json=body) as answer:
                    if answer.status_code == 304 and known is not None:
                        return 304, answer.headers, b""
                    if answer.status_code in _RETRIED:
                        trouble = f"answered {answer.status_code}"
                        wait_s = _asked_wait_s(answer.headers.get("retry-after", ""), wait_s)
                    elif answer.is_success:
                        content = self._read(answer, shown)
                        trouble = _defect(content, expects)
                        if not trouble:
                            self.statistics.fetched_bytes += len(content)
                            return answer.status_code, answer.headers, content
                    else:
                        raise PriceSourceError(f"{shown} answered {answer.status_code} {answer.reason_phrase}".strip())
            except httpx.HTTPError as error:
                # A body shorter than announced ends here too (RemoteProtocolError).
                trouble = (
                    f"failed ({type(error).__name__}: {error})" if str(error) else f"failed ({type(error).__name__})"
                )
            except httpx.InvalidURL as error:
                raise PriceSourceError(f"{shown} is not an address: {error}") from error
            if attempt + 1 < self.max_attempts:
                self.statistics.retries += 1
                self.sleep(wait_s)
        raise PriceSourceError(f"{shown} {trouble}, {self.max_attempts} attempts")

    def _read(self, answer: httpx.Response, shown: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        for part in answer.iter_bytes():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise PriceSourceError(f"{shown} is longer than {MAX_BODY_BYTES:,} bytes")
            parts.append(part)
        return b"".join(parts)

    def _backoff(self, attempt: int) -> float:
        # Full jitter on the upper half: never less than half the step, so that retries spread but do wait.
        step = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt)
        return step * (0.5 + 0.5 * self.jitter())


def _asked_wait_s(retry_after: str, otherwise: float) -> float:
    """Seconds that a Retry-After header asks for (seconds or a date), within `LONGEST_WAIT_S`."""
    if not retry_after:
        return otherwise
    try:
        asked = float(retry_after)
    except ValueError:
        import email.utils

        try:
            moment = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return otherwise
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        asked = (moment - datetime.now(UTC)).total_seconds()
    if asked != asked:
        return otherwise
    return min(max(asked, 0.0), LONGEST_WAIT_S)


def _defect(content: bytes, expects: Expects) -> str:
    """Why a body is not what was asked for; empty = it is."""
    if expects == "json":
        if len(content) > WHOLE_CHECK_BYTES:
            return "" if content.rstrip().endswith((b"}", b"]")) else "sent a body that ends early"
        try:
            json.loads(content)
        except (UnicodeDecodeError, ValueError) as error:
            return f"sent a body that is not whole JSON ({error})"
    elif expects == "csv":
        head = content[:4096].lstrip()
        if not head or head.startswith((b"<", b"{")):
            return "sent no table"
        if not content.endswith((b"\n", b"\r")) and content.count(b'"') % 2:
            return "sent a table that ends inside a field"
    elif expects == "zip":
        import io
        import zipfile

        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if archive.testzip() is not None:
                    return "sent a damaged archive"
        except (zipfile.BadZipFile, EOFError):
            return "sent an archive that is not whole"
    elif not content:
        return "sent an empty body"
    return ""


def _place(address: str) -> str:
    """An address for messages: what is asked there is long and tells little."""
    return address.partition("?")[0]


def _without_keys(url: httpx.URL) -> str:
    """The address for messages and as a name in the store: credentials in the query are left out."""
    kept = [(name, value) for name, value in url.params.multi_items() if name.lower() not in _SECRET_PARAMETERS]
    plain = url.copy_with(query=None, fragment=None, userinfo=b"")
    return str(plain.copy_with(params=kept) if kept else plain)


_SECRET_PARAMETERS = frozenset({"key", "api_key", "apikey", "token", "access_token"})
