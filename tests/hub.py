"""A local hub: answers what huggingface_hub asks of huggingface.co from folders; and a visit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from d2cache import models

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def serve(root: Path):
    """Serve repositories root/OWNER/NAME; yields the address and the files sent, in order."""
    sent = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def answer(self, body: bool):
            path = self.path.partition("?")[0]
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/[^/]+", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            repository = root / (api or file)[1] if api or file else None
            if repository is None or not repository.is_dir():
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            elif api and api[2] == "revision":
                info = {"id": api[1], "modelId": api[1], "sha": COMMIT, "siblings": [], "tags": []}
                self.reply(200, json.dumps(info).encode(), {}, body)
            elif api:
                tree = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                    for p in sorted(repository.iterdir())
                ]
                self.reply(200, json.dumps(tree).encode(), {}, body)
            elif (repository / file[2]).is_file():
                data = (repository / file[2]).read_bytes()
                tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
                if body:
                    sent.append(f"{file[1]}/{file[2]}")
                self.reply(200, data, tag, body)
            else:
                self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

        def reply(self, status: int, data: bytes, headers: dict, body: bool):
            self.send_response(status)
            for name, value in {"X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


def visit(names: list[str]) -> dict[str, dict]:
    """Load hub ids one after another; -> for each: whether it was in the cache before and after,
    the progress that was reported, the error or "", and what the loaded model is."""
    got = {}
    for name in names:
        before, seen, error, reads = models.cached(name) is not None, [], "", None
        try:
            model = models.load(name, "cpu", progress=lambda *one, seen=seen: seen.append(one))
            reads = [model.config.name, model.config.family, len(model.encode("What is 2 + 3?"))]
        except ValueError as e:
            error = str(e)
        after = models.cached(name) is not None
        got[name] = dict(before=before, after=after, seen=seen, error=error, reads=reads)
    return got
