# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Pictures by URL: downloaded once, within bounds, and from the open internet alone."""

import hashlib
import http
import ipaddress
import os
import socket
import ssl
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import datasets
import httpcore2
import httpx2
from anyio.from_thread import start_blocking_portal
from datasets.utils import tqdm

from .pictures import Found


NOT_DOWNLOADED = "picture cannot be downloaded"

_PORTS = (80, 443)
_HEADERS = {"User-Agent": "fusionmatch", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
# Pictures under way at a time, over all hosts.
_AT_ONCE = 32
# Seconds before the first retry, doubled with each further one.
_BACK_OFF = 0.5
# So many pictures in a row that a host could not give: the host is down, and its other pictures are not tried.
_LOST = 10
# Addresses that stand for IPv4 ones: what is behind them is what counts.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Not the open internet, though Python takes them for it: relays of 6to4, networks of a site as they were once
# numbered, and the host that a machine at Azure runs on.
_CLOSED = [ipaddress.ip_network(name) for name in ("192.88.99.0/24", "fec0::/10", "168.63.129.16")]


@dataclass(frozen=True)
class DownloadLimits:
    """
    How much a picture may cost.

    Args:
        max_bytes (`int`, *optional*, defaults to 32 MiB): Largest picture.
        connect_timeout (`float`, *optional*, defaults to 10.0): Seconds until a connection must stand.
        read_timeout (`float`, *optional*, defaults to 20.0): Seconds in which something must come.
        total_timeout (`float`, *optional*, defaults to 120.0): Seconds a picture may take, with redirects and retries.
        max_redirects (`int`, *optional*, defaults to 5): Redirects that are followed.
        max_retries (`int`, *optional*, defaults to 3): Further attempts after a fault that may pass: 429, 5xx, a
            timeout, a connection that was cut.
        per_host (`int`, *optional*, defaults to 6): Pictures that are fetched from one host at a time.
    """

    max_bytes: int = 32 * 2**20
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    total_timeout: float = 120.0
    max_redirects: int = 5
    max_retries: int = 3
    per_host: int = 6


class _DownloadError(Exception):
    """
    Why a picture did not come, in words; whether it may come later, and in how many seconds the server says so;
    whether it is the host's fault, and so that of its other pictures.
    """

    def __init__(self, words: str, passing: bool = False, wait: float = 0.0, of_host: bool | None = None) -> None:
        super().__init__(words)
        self.passing = passing
        self.wait = wait
        self.of_host = passing if of_host is None else of_host


def download_pictures(
    urls: Iterable[str],
    cache_dir: str | os.PathLike | None = None,
    allowed_hosts: Collection[str] = (),
    limits: DownloadLimits | None = None,
) -> dict[str, Found]:
    """
    Downloads pictures into a folder that keeps them: what lies there is not asked for again.

    Only http and https on their usual ports are followed, and only to addresses of the open internet, after each
    redirect as well: a catalogue must not make this machine ask its own network. The address that was checked is the
    one that is connected to. Proxies of the environment are not used, since they would look the names up themselves.

    Args:
        urls (`Iterable[str]`): What to download, each once.
        cache_dir (`str` or `os.PathLike`, *optional*): Folder to keep the pictures in, named by a digest of their URL;
            defaults to `fusionmatch_images` in the cache of `datasets`.
        allowed_hosts (`Collection[str]`, *optional*): Hosts that may have a private address or another port, such as
            a picture server of one's own; names as they stand in the URLs, without the port.
        limits ([`DownloadLimits`], *optional*): How much a picture may cost.

    Returns:
        `dict[str, Found]`: for each URL the file, or the reason why there is none.

    Raises:
        `ValueError`: An entry of `allowed_hosts` is no host.
    """
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "fusionmatch_images").expanduser().resolve()
    files = {url: _cache_file(folder, url) for url in urls}
    found = {url: Found(file) for url, file in files.items() if file.is_file()}
    missing = {url: file for url, file in files.items() if url not in found}
    if not missing:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    # A thread of its own, since a notebook has a loop already; what is under way ends when the user interrupts.
    with start_blocking_portal() as portal:
        downloads = _Downloads(allowed_hosts, limits or DownloadLimits())
        return found | portal.call(downloads.run, missing)


def _cache_file(folder: Path, url: str) -> Path:
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return folder / digest[:2] / digest


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Looks a host up, checks its addresses and connects to one of those that were checked."""

    def __init__(self, allowed_hosts: Collection[str]) -> None:
        self.allowed_hosts = allowed_hosts

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        """As in the base class, for addresses that are allowed."""
        allowed = host.rstrip(".").lower() in self.allowed_hosts
        if not allowed and port not in _PORTS:
            raise _DownloadError(f"port {port} is not allowed; name {host} in allowed_hosts to allow it")
        try:
            with anyio.fail_after(timeout):
                entries = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout from error
        except (OSError, UnicodeError) as error:
            passing = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            raise _DownloadError(f"there is no host {host} ({error})", passing) from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        public = addresses if allowed else [address for address in addresses if _is_public(address)]
        if not public:
            raise _DownloadError(
                f"{host} has the private address {addresses[0]}; name the host in allowed_hosts to allow it"
            )
        for address in public[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, **options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await super().connect_tcp(public[-1], port, timeout, **options)


def _is_public(address: str) -> bool:
    own = ipaddress.ip_address(address)
    if isinstance(own, ipaddress.IPv6Address):
        behind = [own.ipv4_mapped, own.sixtofour, *(own.teredo or ())]
        if own in _NAT64:
            behind.append(ipaddress.IPv4Address(own.packed[-4:]))
        hidden = [str(one) for one in behind if one is not None]
        if hidden:
            return all(map(_is_public, hidden))
    closed = own.is_multicast or own.is_reserved or any(own in network for network in _CLOSED)
    return own.is_global and not closed


class _Downloads:
    """One run: few connections a host, faults counted by host."""

    def __init__(self, allowed_hosts: Collection[str], limits: DownloadLimits) -> None:
        self.limits = limits
        self.backend = _CheckedBackend({_asked_host(host) for host in allowed_hosts})
        self.found: dict[str, Found] = {}
        self.lost: dict[str, int] = {}

    async def run(self, files: dict[str, Path]) -> dict[str, Found]:
        """Downloads each URL to its file."""
        hosts: dict[str, list[str]] = {}
        for url in files:
            hosts.setdefault(_host(url), []).append(url)
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        with tqdm(total=len(files), desc="Downloading pictures", unit=" pictures") as progress:
            async with (
                httpcore2.AsyncConnectionPool(
                    ssl_context=httpx2.create_ssl_context(),
                    max_connections=_AT_ONCE,
                    keepalive_expiry=5.0,
                    network_backend=self.backend,
                ) as pool,
                anyio.create_task_group() as tasks,
            ):

                async def work(host: str, urls: Iterator[str]) -> None:
                    for url in urls:
                        async with limiter:
                            self.found[url] = await self._download(pool, host, url, files[url])
                        progress.update()

                for host, urls in hosts.items():
                    shared = iter(urls)
                    for _ in range(min(self.limits.per_host, len(urls))):
                        tasks.start_soon(work, host, shared)
        return self.found

    async def _download(self, pool: httpcore2.AsyncConnectionPool, host: str, url: str, file: Path) -> Found:
        if self.lost.get(host, 0) >= _LOST:
            return Found(None, NOT_DOWNLOADED, f"not tried: {host} failed {_LOST} times in a row")
        try:
            await self._try(pool, url, file)
        except _DownloadError as failure:
            self.lost[host] = self.lost.get(host, 0) + 1 if failure.of_host else 0
            return Found(None, NOT_DOWNLOADED, str(failure))
        self.lost[host] = 0
        return Found(file)

    async def _try(self, pool: httpcore2.AsyncConnectionPool, url: str, file: Path) -> None:
        """As often as the limits allow."""
        last = _DownloadError(f"it did not come whole within {self.limits.total_timeout:g} s", passing=True)
        with anyio.move_on_after(self.limits.total_timeout) as scope:
            for attempt in range(self.limits.max_retries + 1):
                try:
                    with _worded(self.limits):
                        return await self._fetch(pool, url, file)
                except _DownloadError as failure:
                    last = failure
                wait = max(_BACK_OFF * 2**attempt, last.wait)
                late = anyio.current_time() + wait >= scope.deadline
                if not last.passing or late or attempt == self.limits.max_retries:
                    break
                await anyio.sleep(wait)
        raise last

    async def _fetch(self, pool: httpcore2.AsyncConnectionPool, url: str, file: Path) -> None:
        """One attempt, with its redirects."""
        limits = self.limits
        timeout = {"connect": limits.connect_timeout, "read": limits.read_timeout, "write": limits.read_timeout}
        target = httpx2.URL(url)
        for _ in range(limits.max_redirects + 1):
            _check_url(target)
            request = httpcore2.URL(
                scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
            )
            async with pool.stream("GET", request, headers=_HEADERS, extensions={"timeout": timeout}) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                    target = target.join(_location(headers[b"location"]))
                    continue
                if response.status != 200:
                    wait = _wait(headers.get(b"retry-after", b"").decode("ascii", "replace"))
                    passing = response.status == 429 or response.status >= 500
                    raise _DownloadError(_status(response.status), passing, wait)
                await self._save(response, headers.get(b"content-length", b""), file)
                return
        raise _DownloadError(f"it is redirected more than {limits.max_redirects} times")

    async def _save(self, response: httpcore2.Response, length: bytes, file: Path) -> None:
        """Writes what comes; the file appears whole or not at all."""
        limit = self.limits.max_bytes
        too_large = _DownloadError(f"it is larger than {limit:,} bytes")
        if length.isdigit() and int(length) > limit:
            raise too_large
        file.parent.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".")
        try:
            with os.fdopen(handle, "wb") as part:
                async for piece in response.aiter_stream():
                    if part.tell() + len(piece) > limit:
                        raise too_large
                    part.write(piece)
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def _worded(limits: DownloadLimits) -> Iterator[None]:
    """Turns what the network raises into words."""
    try:
        yield
    except httpcore2.ConnectTimeout as error:
        raise _DownloadError(f"no connection stood within {limits.connect_timeout:g} s", passing=True) from error
    except httpcore2.TimeoutException as error:
        raise _DownloadError(f"nothing came for {limits.read_timeout:g} s", passing=True) from error
    except httpcore2.ConnectError as error:
        # A certificate that does not fit will not fit in a moment.
        passing = not _is_about_a_certificate(error)
        raise _DownloadError(f"no connection: {error}", passing, of_host=True) from error
    except (httpcore2.NetworkError, httpcore2.RemoteProtocolError) as error:
        raise _DownloadError(f"the connection was cut: {error}", passing=True) from error
    except (httpx2.InvalidURL, httpcore2.ProtocolError, ValueError) as error:
        raise _DownloadError(f"it is no URL that can be asked for: {error}") from error
    except OSError as error:
        raise _DownloadError(f"it cannot be written to the cache: {error.strerror}") from error


def _is_about_a_certificate(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _asked_host(host: str) -> str:
    """A host as it is asked for: without the brackets of an address, in ASCII (xn--...)."""
    try:
        return httpx2.URL(scheme="http", host=host.strip("[].")).raw_host.decode("ascii").lower()
    except httpx2.InvalidURL as error:
        raise ValueError(
            f"allowed_hosts: '{host}' is no host. Give names such as images.example or addresses such as 10.0.0.7, "
            "without http:// and port."
        ) from error


def _location(value: bytes) -> str:
    """Where a redirect leads; servers write it in UTF-8, or as HTTP once had it."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _host(url: str) -> str:
    """Host to count connections by; what is no URL has none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _check_url(url: httpx2.URL) -> None:
    if url.scheme not in ("http", "https"):
        raise _DownloadError(f"only http and https are followed, not {url.scheme}")
    if url.userinfo:
        raise _DownloadError("its URL holds a user name or a password, which would end up in the picture's id")
    if not url.host:
        raise _DownloadError("its URL names no host")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _DownloadError(f"its URL names port {url.port}, which does not exist")


def _wait(retry_after: str) -> float:
    """Seconds that the server asks to wait, given as seconds or as a date."""
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # nothing, nonsense, or a date without a time zone
        return 0.0


def _status(status: int) -> str:
    try:
        return f"the server says {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"the server says {status}"
