"""Tokens and closed doors, against a dashboard of a few lines."""

import http.server
import json
import threading

import pytest

from pipelines import cluster_access
from pipelines.cluster_access import AccessError


@pytest.fixture
def dashboard():
    """A server that asks for `server.token` (none where empty) and says its version."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization", "")
            wanted = f"Bearer {self.server.token}" if self.server.token else given
            self.send_response(200 if given == wanted else 403 if given else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode() if given == wanted else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.token = "right"
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_token_is_found_where_ray_looks(monkeypatch, tmp_path):
    assert cluster_access.find_token() == ""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert cluster_access.find_token() == "home"
    (tmp_path / "file").write_text("named")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert cluster_access.find_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "own")
    assert cluster_access.find_token() == "own"


def test_a_token_file_that_is_not_there(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(AccessError, match="cannot read the token at RAY_AUTH_TOKEN_PATH=/nowhere/token"):
        cluster_access.find_token()


def test_a_token_is_required(monkeypatch):
    with pytest.raises(AccessError, match="no token: put the cluster's into"):
        cluster_access.require_token(insecure=False)
    cluster_access.require_token(insecure=True)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    cluster_access.require_token(insecure=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(AccessError, match="RAY_AUTH_MODE is 'disabled', wanted token"):
        cluster_access.require_token(insecure=False)


def test_a_closed_cluster_takes_its_own_token_alone(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    cluster_access.check_closed(dashboard.url, insecure=False)
    assert cluster_access.ray_version(dashboard.url) == "2.60.0"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(AccessError, match="refuses the token") as refused:
        cluster_access.check_closed(dashboard.url, insecure=False)
    assert "wrong" not in str(refused.value)
    with pytest.raises(AccessError, match=r"is no Ray dashboard \(status 403\)"):
        cluster_access.ray_version(dashboard.url)


def test_an_open_cluster_is_refused(dashboard):
    dashboard.token = ""
    with pytest.raises(AccessError, match="anyone who reaches it can run code there"):
        cluster_access.check_closed(dashboard.url, insecure=False)
    cluster_access.check_closed(dashboard.url, insecure=True)


@pytest.mark.parametrize("status", [404, 502])
def test_another_server_is_not_a_refused_token(dashboard, monkeypatch, status):
    monkeypatch.setattr(cluster_access, "_ask", lambda url, token: (status, b""))
    with pytest.raises(AccessError, match=rf"is no Ray dashboard \(status {status}\)"):
        cluster_access.check_closed(dashboard.url, insecure=False)


def test_nobody_there():
    with pytest.raises(AccessError, match=r"no Ray dashboard answers at http://127.0.0.1:1 .*check the address"):
        cluster_access.check_closed("http://127.0.0.1:1", insecure=False)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "wanted the dashboard's URL"),
        ("head:8265", "wanted the dashboard's URL"),
        ("http://", "wanted the dashboard's URL"),
        ("http://me:secret@head:8265", "holds a password, which would be logged"),
    ],
)
def test_addresses_that_are_none(address, message):
    with pytest.raises(AccessError, match=message) as refused:
        cluster_access.check_url(address)
    assert "secret" not in str(refused.value)


def test_the_address_has_defaults(monkeypatch):
    assert cluster_access.check_url("") == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example/")
    assert cluster_access.check_url("") == "https://ray.example"
    assert cluster_access.check_url("http://a:1/") == "http://a:1"
