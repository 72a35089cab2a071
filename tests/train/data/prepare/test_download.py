"""Downloads from a server of our own: whole, interrupted, wrong."""

import http.server
import threading

import pytest
from rich.console import Console

from shiftjax.errors import InputError
from train.data.prepare.download import download

CONTENT = bytes(range(256)) * 20000  # several reads
SIZE = len(CONTENT)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, with ranges or without, and may stop early."""

    def do_GET(self):
        server = self.server
        begin = 0
        if server.ranges and "Range" in self.headers:
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        server.requested.append(begin)
        self.send_response(206 if begin else 200 if self.path == "/file" else 404)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        self.wfile.write(CONTENT[begin : server.stop_after])

    def log_message(self, *_):
        """Keeps quiet."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.stop_after, server.requested = True, None, []
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetch(server, tmp_path):
    def call(name="file", size=SIZE, verify=lambda path: None):
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        path = tmp_path / "downloads" / "file"
        download(url, path, size, verify=verify, console=Console(quiet=True))
        return path

    return call


def test_a_whole_file(fetch):
    path = fetch()
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(fetch, server, tmp_path, ranges):
    server.stop_after = 3_000_000
    with pytest.raises(InputError, match="try again"):
        fetch()
    assert [p.name for p in (tmp_path / "downloads").iterdir()] == ["file.part"]
    server.stop_after, server.ranges = None, ranges
    assert fetch().read_bytes() == CONTENT
    assert server.requested == [0, 3_000_000 if ranges else 0]


def test_a_server_that_is_not_there(fetch, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"could not download http.*as the source"):
        fetch()


def test_a_page_that_is_not_there(fetch):
    with pytest.raises(InputError, match="404"):
        fetch("other")


def test_another_file_than_expected_is_not_kept(fetch, tmp_path):
    with pytest.raises(InputError, match="more than the 1000 bytes expected"):
        fetch(size=1000)

    def refuse(path):
        raise InputError(f"{path.name} is not it")

    with pytest.raises(InputError, match=r"file\.part is not it"):
        fetch(verify=refuse)
    assert not list((tmp_path / "downloads").iterdir())
