"""Who is let in, what is answered, and what is not."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.ui.server import dumps

PAGES = ("/", "/runs/1", "/runs/1/stages/trained", "/runs/1/stages/trained/outputs/out", "/compare/1/2")
ANSWERS = (
    "/static/app.js", "/static/chart.js", "/api/runs", "/api/live", "/api/runs/1", "/api/runs/1/live",
    "/api/runs/1/stages/trained", "/api/runs/1/stages/trained/log", "/api/runs/1/stages/trained/curves",
    "/api/runs/1/stages/trained/outputs/out", "/api/compare/1/2", "/runs/1/report",
)  # fmt: skip
OUTPUT = "/api/runs/1/stages/trained/outputs/out"


@pytest.mark.parametrize("path", [*PAGES, *ANSWERS])
def test_nothing_is_said_to_who_was_not_let_in(shown: Any, path: str):
    wrong = f"{shown.server.cookie}={'x' * 43}"
    for cookie in (None, wrong, "", f"microstages={shown.server.secret}", "=;=; \x01"):
        reply = shown.ask(path, head={"Cookie": cookie})
        assert reply.status == 403 and "runner ui" in reply.text
        assert "shown" not in reply.text and "set-cookie" not in reply.head


def test_the_token_is_exchanged_for_a_cookie_that_no_script_and_no_other_site_can_use(shown: Any):
    reply = shown.ask(f"/runs/2?token={shown.server.token}", head={"Cookie": None, "Sec-Fetch-Site": "cross-site"})
    assert reply.status == 200 and 'content="0;url=/runs/2"' in reply.text
    cookie, *flags = reply.head["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(flags)
    assert shown.server.token not in cookie + reply.text
    assert shown.ask("/runs/2", head={"Cookie": cookie}).status == 200


def test_a_wrong_token_is_refused(shown: Any):
    for token in ("", "x", shown.server.secret, shown.server.token[:-1], "ä"):
        reply = shown.ask(f"/?token={token.encode().hex() if token == 'ä' else token}", head={"Cookie": None})
        assert reply.status == 403 and "set-cookie" not in reply.head


@pytest.mark.parametrize(
    "others", ['prefs={{"a": 1}}; {}', "foo[bar]=1; {}", "a=b;{}; c", "{name}=other; {}", "x{name}=1; {}; ="]
)
def test_cookies_of_other_servers_of_this_machine_are_in_nobodys_way(shown: Any, others: str):
    cookie = others.format(shown.cookie, name=shown.server.cookie)
    assert shown.ask("/api/runs", head={"Cookie": cookie}).status == 200
    assert shown.ask("/api/runs", head={"Cookie": cookie.replace("; micro", "; xmicro")[:-4]}).status == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[::2]", "", None])
def test_a_name_that_was_bound_to_this_machine_gets_nothing(shown: Any, host: str | None):
    named = host and host.format(port=shown.server.server_port)
    for path in ("/", "/api/runs", f"/?token={shown.server.token}"):
        reply = shown.ask(path, head={"Host": named})
        assert reply.status in (400, 403) and "set-cookie" not in reply.head


def test_two_hosts_are_refused(shown: Any):
    with socket.create_connection(("127.0.0.1", shown.server.server_port)) as s:
        head = f"Host: {shown.host}\r\nHost: evil.example\r\nCookie: {shown.cookie}\r\nConnection: close\r\n"
        s.sendall(f"GET /api/runs HTTP/1.1\r\n{head}\r\n".encode())
        assert b" 403 " in s.makefile("rb").readline()


def test_a_tunnel_may_have_another_port(shown: Any):
    for host in ("localhost:9999", "127.0.0.1:80", "LOCALHOST"):
        assert shown.ask("/api/runs", head={"Host": host}).status == 200


@pytest.mark.parametrize("head", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
])  # fmt: skip
def test_pages_of_others_get_nothing_even_with_the_cookie(shown: Any, head: dict[str, str]):
    for path in ("/", "/api/runs", "/static/app.js"):
        assert shown.ask(path, head=head).status == 403


def test_it_is_only_read(shown: Any):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "NONSENSE"):
        reply = shown.ask("/api/runs", method)
        assert reply.status == 405 and reply.head["allow"] == "GET, HEAD"
    head = shown.ask("/api/runs", "HEAD")
    assert head.status == 200 and head.body == b""


@pytest.mark.parametrize("path", [
    "/static/../server.py", "/static/..%2fserver.py", "/..%2f..%2f..%2fetc/passwd", "//etc/passwd", "/etc/passwd",
    "/static/", "/static/%2e%2e/server.py", "/api", "/api/runs/x", "/api/runs/-1", "/api/runs/99999999999999999999",
    "/runs/1/stages/trained/outputs/out/../../..", "/api/runs/1/stages/..%2f..%2ftrained/log", "/favicon.ico",
    "/api/runs/99", "/api/runs/1/stages/other", "/api/runs/1/stages/trained/outputs/other", "/api/compare/1/99",
    "/api/runs/1/stages/trained/log?attempt=../../history.db", "/api/runs/1/stages/trained/log?attempt=checked.log",
    "/api/runs/99/live", "/runs/99/report", f"/runs/{'9' * 5000}/report", "/runs/%c2%b2/report",
    "/api/compare/%c2%b2/1", f"/api/compare/1/{'1' * 5000}", "/api/runs/%d9%a1",
])  # fmt: skip
def test_what_is_not_there_is_not_found(shown: Any, path: str):
    reply = shown.ask(path)
    assert reply.status == 404, reply.text
    assert "root:" not in reply.text and "import" not in reply.text


@pytest.mark.parametrize(
    "name", ["../../commit.json", "/etc/passwd", "..", "", "artifact.json", "words.txt/../weights"]
)
def test_files_are_those_that_the_manifest_names(shown: Any, name: str):
    for what in ("preview", "picture"):
        reply = shown.ask(f"{OUTPUT}/{what}?file={name}")
        assert reply.status == 404 and "root:" not in reply.text


def test_a_link_out_of_an_artifact_is_not_followed(own: Any, tmp_path: Path):
    own.project.up("--only", "trained")
    (tmp_path / "secret.txt").write_text("a secret\n")
    words = own.project.output("trained") / "words.txt"
    words.unlink()
    words.symlink_to(tmp_path / "secret.txt")
    reply = own.ask(f"{OUTPUT}/preview?file=words.txt")
    assert reply.status == 404 and "missing" in reply.json["error"]["what"] and "a secret" not in reply.text


def test_answers_are_never_taken_for_pages(shown: Any):
    for path in ANSWERS:
        if "live" in path:
            continue
        reply = shown.ask(path)
        assert reply.head["x-content-type-options"] == "nosniff" and "content-security-policy" in reply.head
        if path.startswith("/api"):
            assert reply.head["content-type"].startswith("application/json")
            assert reply.head["cache-control"] == "no-store"


def test_the_policy_of_the_pages_allows_no_markup_made_of_text(shown: Any):
    policy = shown.ask("/").head["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    page = shown.ask("/").text
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page)


def test_a_report_and_a_picture_get_no_part_in_this_place(shown: Any):
    report = shown.ask("/runs/1/report")
    assert report.head["content-type"].startswith("text/html")
    assert "sandbox" in report.head["content-security-policy"]
    assert "allow-same-origin" not in report.head["content-security-policy"]
    picture = shown.ask(f"{OUTPUT}/picture?file=curve.svg")
    assert picture.head["content-type"] == "image/svg+xml" and "sandbox" in picture.head["content-security-policy"]
    assert "script-src" not in picture.head["content-security-policy"]


def test_a_bug_is_told_and_the_server_goes_on(shown: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    monkeypatch.setattr(shown.server.answers, "runs", lambda *_: 1 / 0)
    reply = shown.ask("/api/runs")
    assert reply.status == 500 and reply.json["error"]["what"] == "this is a bug of ours"
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert shown.ask("/api/runs/1").status == 200


def test_files_of_the_pages_are_sent_once(shown: Any):
    first = shown.ask("/static/chart.js")
    again = shown.ask("/static/chart.js", head={"If-None-Match": first.head["etag"]})
    assert len(first.body) > 100_000 and again.status == 304 and again.body == b""


def test_numbers_that_json_does_not_know():
    assert json.loads(dumps({"a": [float("nan"), float("-inf"), 1.5]})) == {"a": ["nan", "-inf", 1.5]}


# --- the command ---


def test_the_command_prints_the_address_once_and_ends_at_ctrl_c(with_runs: Any, tmp_path: Path, eventually: Any):
    opener = tmp_path / "browser"
    opener.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told.part\nmv {tmp_path}/told.part {tmp_path}/told\n')
    opener.chmod(0o755)
    environment = {**with_runs.environment, "BROWSER": str(opener)}
    process = subprocess.Popen(
        # tests that run in the background of a shell ignore the signal
        ["env", "--default-signal=INT", sys.executable, "-m", "runner.cli", "ui", "--open"],
        cwd=with_runs.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    line = process.stdout.readline()
    found = re.fullmatch(r"shown: http://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})\n", line)
    assert found, line
    with socket.create_connection(("127.0.0.1", int(found[1]))) as s:
        s.sendall(f"GET /?token={found[2]} HTTP/1.1\r\nHost: localhost:{found[1]}\r\n\r\n".encode())
        assert b" 200 " in s.makefile("rb").readline()
    process.stdout.readline()
    eventually((tmp_path / "told").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and err == "" and found[2] not in out
    told = (tmp_path / "told").read_text()
    assert "open.html" in told and found[2] not in told
    assert not Path(told.split()[-1].removeprefix("file://")).exists()


def test_a_port_that_is_taken(shown: Any):
    done = shown.project.run("ui", "--port", shown.server.server_port)
    assert done.code == 2 and "already in use" in done.err and "--port" in done.err


def test_a_port_that_is_none(shown: Any):
    done = shown.project.run("ui", "--port", 70000)
    assert done.code == 2 and "65535" in done.err


def test_a_history_that_is_none(own: Any):
    folder = own.project.folder / ".runner"
    folder.mkdir()
    (folder / "history.db").write_text("this is no database, and long enough to be told from an empty one\n" * 30)
    done = own.project.run("ui")
    assert done.code == 2 and "the history cannot be read" in done.err
    assert [p.name for p in folder.iterdir()] == ["history.db"]
