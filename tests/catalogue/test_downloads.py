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
"""Pictures by URL, from a server on this machine that misbehaves as servers do."""

import io
import json
import socket
import ssl
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusionmatch.catalogue import downloads, pictures, read_catalogue
from fusionmatch.catalogue.downloads import NOT_DOWNLOADED, DownloadLimits, download_pictures
from fusionmatch.commands import main


def jpeg(color):
    file = io.BytesIO()
    Image.new("RGB", (48, 48), color).save(file, "jpeg")
    return file.getvalue()


PICTURE = jpeg("red")
HASTY = DownloadLimits(read_timeout=0.5, total_timeout=1.5, max_bytes=20_000, per_host=3)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body=PICTURE, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            self.respond(self.path.split("?")[0], server.asked[self.path])
        except ConnectionError:
            self.close_connection = True
        finally:
            with server.lock:
                server.busy -= 1

    def respond(self, path, times):
        if path.startswith("/color/"):
            time.sleep(0.02)
            self.answer(jpeg(tuple(int(part) for part in path.split("/")[2:])))
        elif path == "/then-whole" and times == 1:
            self.answer(b"", 500)
        elif path == "/busy" and times == 1:
            self.answer(b"", 429, Retry_After=1)
        elif path == "/never":
            self.answer(b"", 429, Retry_After=3600)
        elif path == "/cut" and times == 1:
            self.answer(PICTURE[:100], Content_Length=len(PICTURE))
            self.close_connection = True
        elif path == "/gone":
            self.answer(b"no", 404)
        elif path == "/down":
            self.answer(b"", 503)
        elif path == "/moved":
            self.answer(b"", 302, Location="/color/0/0/255")
        elif path == "/round":
            self.answer(b"", 302, Location="/round")
        elif path.startswith("/to/"):
            self.answer(b"", 302, Location=self.server.targets[path])
        elif path == "/large":
            self.answer(bytes(30_000))
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            for _ in range(1000):
                self.wfile.write(bytes(1000))
        elif path in ("/drip", "/drip-headers"):
            self.send_response(200)
            if path == "/drip":
                self.end_headers()
            self.flush_headers()
            self.close_connection = True
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        elif path == "/silent":
            time.sleep(1)
        elif path == "/page":
            self.answer(b"<html>not here</html>", Content_Type="text/html")
        else:
            self.answer()


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.lock, server.targets = Counter(), threading.Lock(), {}
        server.busy = server.busiest = 0
        server.root = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def encrypted(server, monkeypatch, tmp_path):
    """Gives the server a certificate for a name, from an authority of its own that this machine trusts or not."""

    def encrypt(name, trusted=True):
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        server.greeted = []
        context.sni_callback = lambda _, asked, __: server.greeted.append(asked)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        (authority if trusted else trustme.CA()).cert_pem.write_to_path(tmp_path / "authority.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        server.root = f"https://localhost:{server.server_port}"

    return encrypt


@pytest.fixture
def fetch(server, tmp_path):
    """Downloads one URL, or a path of the server; gives the file's bytes, or the reason's detail."""

    def fetch(url, allowed_hosts=("127.0.0.1",), limits=HASTY):
        url = server.root + url if url.startswith("/") else url
        ((one, found),) = download_pictures([url], tmp_path / "kept", allowed_hosts, limits).items()
        assert one == url
        if found.path is not None:
            return found.path.read_bytes()
        assert found.reason == NOT_DOWNLOADED
        return found.detail

    yield fetch
    # Nothing half written is left.
    assert not [file for file in (tmp_path / "kept").rglob("*") if file.name.startswith(".")]


def write(folder, urls):
    path = folder / "shop.jsonl"
    path.write_text("".join(json.dumps({"image": url, "text": f"Text {url}"}) + "\n" for url in urls))
    return path


def test_a_catalogue_of_urls(server, tmp_path, draw):
    draw("own.png", 5)
    first, second, gone = f"{server.root}/color/1/2/3", f"{server.root}/color/1/2/3?size=2", f"{server.root}/gone"
    page = f"{server.root}/page"
    path = write(tmp_path, [first, "own.png", gone, second, first, page])
    options = {"image_cache_dir": tmp_path / "kept", "allowed_hosts": ["127.0.0.1"]}
    intake = read_catalogue(path, **options)
    assert {fault.reason for fault in intake.quarantine} == {pictures.URL}
    assert "--download_images True" in pictures.URL
    assert server.asked == {}

    intake = read_catalogue(path, download_images=True, **options)
    assert intake.dataset["image_id"][:] == [first, "own.png", second]
    assert intake.dataset["product"][:] == [first, "own.png", second]
    assert intake.dataset["source_row"][:] == [1, 2, 4]
    assert intake.dataset[0]["image"].size == (48, 48)
    groups = intake.dataset["picture_group"][:]
    assert groups[0] == groups[2] != groups[1]
    faults = {fault.row: fault for fault in intake.quarantine}
    assert (faults[3].reason, faults[3].value, faults[3].path) == (NOT_DOWNLOADED, gone, None)
    assert faults[3].detail == "the server says 404 Not Found"
    assert (faults[6].reason, faults[6].path) == (pictures.UNREADABLE, None)
    assert set(server.asked.values()) == {1}

    server.asked.clear()
    again = read_catalogue(path, download_images=True, **options)
    assert again.dataset.to_dict() == intake.dataset.to_dict()
    # What there is, is not asked for again; what was no picture is.
    assert server.asked == {"/gone": 1, "/page": 1}


def test_the_command_line_downloads(server, tmp_path, capsys):
    path = write(tmp_path, [f"{server.root}/color/{n}/9/9" for n in range(0, 250, 50)])
    command = ["check", str(path), "--image_cache_dir", str(tmp_path / "kept"), "--allowed_hosts", "127.0.0.1"]
    assert main(command) == 1
    assert "--download_images True" in capsys.readouterr().err
    assert main([*command, "--download_images", "True"]) == 0
    assert "5 rows read: 5 pictures of 5 products kept, 0 quarantined" in capsys.readouterr().out
    assert len(server.asked) == 5


def test_what_passes_is_tried_again(server, fetch):
    assert fetch("/then-whole") == PICTURE
    assert fetch("/cut") == PICTURE
    start = time.monotonic()
    assert fetch("/busy", limits=replace(HASTY, total_timeout=10)) == PICTURE
    assert time.monotonic() - start >= 1  # what Retry-After asked for; the first back-off is half a second
    assert fetch("/moved") == jpeg("blue")
    assert set(server.asked.values()) == {2, 1} and server.asked["/cut"] == 2


def test_what_does_not_pass_is_worded(server, fetch):
    assert fetch("/gone") == "the server says 404 Not Found"
    assert server.asked["/gone"] == 1
    assert fetch("/never") == "the server says 429 Too Many Requests"
    assert server.asked["/never"] == 1  # an hour is more than there is
    assert fetch("/down") == "the server says 503 Service Unavailable"
    assert server.asked["/down"] > 1
    assert fetch("/round") == "it is redirected more than 5 times"
    assert server.asked["/round"] == 6
    for path in ("/large", "/endless"):
        assert fetch(path) == "it is larger than 20,000 bytes"
    assert fetch("/silent") == "nothing came for 0.5 s"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "no connection" in fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/a.jpg")


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_server_that_drips_is_left(fetch, path):
    start = time.monotonic()
    assert fetch(path) == "it did not come whole within 1.5 s"
    assert time.monotonic() - start < 3


PRIVATE = [
    "http://127.0.0.1/a.jpg",
    "http://localhost/a.jpg",
    "http://2130706433/a.jpg",
    "http://0x7f.1/a.jpg",
    "http://0177.0.0.1/a.jpg",
    "http://[::1]/a.jpg",
    "http://[::ffff:127.0.0.1]/a.jpg",
    "http://[::ffff:a9fe:a9fe]/latest/meta-data",
    "http://[64:ff9b::7f00:1]/a.jpg",
    "http://[2002:7f00:1::]/a.jpg",
    "http://[fe80::1]/a.jpg",
    "http://169.254.169.254/latest/meta-data",
    "https://10.1.2.3/a.jpg",
    "http://192.168.0.1/a.jpg",
    "http://100.64.0.1/a.jpg",
    "http://224.0.0.1/a.jpg",
    "http://0.0.0.0/a.jpg",
    "http://240.0.0.1/a.jpg",
    "http://192.88.99.1/a.jpg",
    "http://168.63.129.16/metadata",
    "http://[fec0::1]/a.jpg",
    "http://[::ffff:168.63.129.16]/metadata",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_are_refused_in_every_spelling(fetch, url):
    words = fetch(url, allowed_hosts=())
    assert "has the private address" in words or "no URL that can be asked for" in words


@pytest.mark.parametrize("url", [*PRIVATE[1:], "file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "//10.0.0.1/a.jpg"])
def test_redirects_are_refused_like_urls(server, fetch, url):
    server.targets["/to/it"] = url
    words = fetch("/to/it")
    assert any(part in words for part in ("private address", "no URL", "only http and https"))
    assert server.asked == {"/to/it": 1}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "only http and https are followed, not file"),
        ("ftp://example.com/a.jpg", "only http and https are followed, not ftp"),
        ("s3://bucket/a.jpg", "only http and https are followed, not s3"),
        ("http://me:secret@127.0.0.1/a.jpg", "holds a user name or a password"),
        ("http://example.com@127.0.0.1/a.jpg", "holds a user name or a password"),
        ("http://example.com\\@127.0.0.1/a.jpg", "holds a user name or a password"),
        ("http://example.com:22/a.jpg", "port 22 is not allowed; name example.com in allowed_hosts"),
        ("http://example.com:99999/a.jpg", "port 99999, which does not exist"),
        ("http://example.com:port/a.jpg", "it is no URL that can be asked for"),
        ("http:///a.jpg", "names no host"),
        ("http://[::1/a.jpg", "it is no URL that can be asked for"),
        ("http://" + "a" * 70 + ".example/a.jpg", "there is no host"),
        ("http://a\0b/\ud800.jpg", "it is no URL that can be asked for"),
    ],
)
def test_urls_that_are_not_asked_for(fetch, url, words):
    assert words in fetch(url, allowed_hosts=())


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(server, fetch, monkeypatch):
    """DNS rebinding: public when it is checked, private a moment later."""
    answers = iter(["93.184.215.14", "127.0.0.1"])
    connected = []

    async def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    async def connect(self, host, port, *_, **__):
        connected.append(host)
        raise downloads.httpcore2.ConnectError("no network here")

    monkeypatch.setattr(downloads.anyio, "getaddrinfo", resolve)
    monkeypatch.setattr(downloads.httpcore2.AnyIOBackend, "connect_tcp", connect)
    words = fetch("http://shop.example/a.jpg", allowed_hosts=())
    assert connected == ["93.184.215.14"]
    assert words == "shop.example has the private address 127.0.0.1; name the host in allowed_hosts to allow it"


@pytest.mark.parametrize("name", ["bücher.firma", "Bücher.Firma.", "xn--bcher-kva.firma"])
def test_a_host_is_allowed_by_its_name_in_either_writing(server, fetch, monkeypatch, name):
    async def resolve(host, port, **_):
        assert host == "xn--bcher-kva.firma"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(downloads.anyio, "getaddrinfo", resolve)
    port = server.server_address[1]
    for host in ("bücher.firma", "xn--bcher-kva.firma"):
        assert fetch(f"http://{host}:{port}/{name}.jpg", allowed_hosts=[name]) == PICTURE


@pytest.mark.parametrize("host", ["http://images.example", "images.example:8080"])
def test_an_allowed_host_that_is_none_is_worded(fetch, host):
    with pytest.raises(ValueError, match=f"allowed_hosts: '{host}' is no host"):
        fetch("/a.jpg", allowed_hosts=[host])


def test_https_with_the_name_of_the_host(server, fetch, encrypted):
    encrypted("localhost")
    assert fetch("/color/0/128/0", ("localhost",)) == jpeg((0, 128, 0))
    assert fetch("/moved", ("localhost",)) == jpeg((0, 0, 255))


@pytest.mark.parametrize(("name", "trusted"), [("images.example", True), ("127.0.0.1", True), ("localhost", False)])
def test_https_without_a_fitting_certificate_is_refused(server, fetch, encrypted, tmp_path, name, trusted):
    """The address that is connected to is no name to be certified: a host must prove that it is the one asked for."""
    encrypted(name, trusted)
    assert "certificate" in fetch("/color/0/128/0", ("localhost",), replace(HASTY, total_timeout=60))
    assert server.greeted == ["localhost"], "it is not tried again"
    urls = [f"{server.root}/color/0/128/{i}" for i in range(100)]
    found = download_pictures(urls, tmp_path / "kept", ("localhost",), HASTY)
    assert len(server.greeted) < 30, "the certificate is the host's: it is given up"
    assert "not tried: localhost" in found[urls[-1]].detail
    assert not server.asked


@pytest.mark.parametrize(("encoding", "asked"), [("utf-8", "/caf%C3%A9.jpg"), ("latin-1", "/caf%C3%A9.jpg")])
def test_a_redirect_to_a_name_that_is_not_ascii(server, fetch, encoding, asked):
    # The server writes headers in latin-1.
    server.targets["/to/it"] = "/café.jpg".encode(encoding).decode("latin-1")
    assert fetch("/to/it") == PICTURE
    assert server.asked == {"/to/it": 1, asked: 1}


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_however_it_is_wrapped(address):
    number = int(address)
    public = address.is_global and not (address.is_multicast or address.is_reserved)
    public = public and str(address) != "168.63.129.16" and not str(address).startswith("192.88.99.")
    for wrapped in (number, 0xFFFF << 32 | number, 0x2002 << 112 | number << 80, 0x64FF9B << 96 | number):
        own = address if wrapped == number else downloads.ipaddress.IPv6Address(wrapped)
        assert downloads._is_public(str(own)) == public


def test_few_at_a_time_and_each_once(server, tmp_path):
    urls = [f"{server.root}/color/{n}/0/0" for n in range(40)]
    found = download_pictures(urls * 2, tmp_path / "kept", ["127.0.0.1"], HASTY)
    assert all(found[url].path is not None for url in urls)
    assert set(server.asked.values()) == {1} and len(server.asked) == 40
    assert 1 < server.busiest <= 3


def test_a_host_that_is_down_is_given_up(server, tmp_path):
    urls = [f"{server.root}/down?{n}" for n in range(60)]
    limits = DownloadLimits(max_retries=0, per_host=2)
    found = download_pictures(urls, tmp_path / "kept", ["127.0.0.1"], limits)
    assert {one.reason for one in found.values()} == {NOT_DOWNLOADED}
    assert "failed 10 times in a row" in found[urls[-1]].detail
    assert 10 <= len(server.asked) <= 12


def test_a_cache_that_cannot_be_written_is_worded(server, fetch, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.tempfile, "mkstemp", full)
    assert fetch("/color/1/1/1") == "it cannot be written to the cache: No space left on device"


def test_it_works_where_a_loop_runs_already(server, tmp_path):
    async def notebook():
        return download_pictures([f"{server.root}/x"], tmp_path / "kept", ["127.0.0.1"])

    (found,) = downloads.anyio.run(notebook).values()
    assert found.path.read_bytes() == PICTURE
