"""A stand-in for the scheduler of ZeroGPU: the HTTP calls that `spaces` makes, answered."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit


class Scheduler(ThreadingHTTPServer):
    """Lends one GPU, by turns. mood: what is answered to a request for it: lends, spent (no quota
    is left) or busy (no GPU within a minute, told at once). gpu: its UUID."""

    daemon_threads = True

    def __init__(self, gpu: str):
        super().__init__(("127.0.0.1", 0), Answers)
        self.gpu, self.mood = gpu, "lends"
        self.lent = 0  # how often
        self.calls: list[tuple[str, dict]] = []  # path and parameters
        self.news = threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def made(self, path: str) -> list[dict]:
        """The parameters of the calls of a path."""
        with self.news:
            return [params for called, params in self.calls if called == path]

    def wait(self, path: str, count: int, seconds: float = 60) -> bool:
        """Whether a path has been called so often, within so many seconds."""
        with self.news:
            enough = lambda: sum(called == path for called, _ in self.calls) >= count
            return self.news.wait_for(enough, seconds)


class Answers(BaseHTTPRequestHandler):
    server: Scheduler

    def log_message(self, *_):
        pass

    def do_POST(self):
        url = urlsplit(self.path)
        with self.server.news:
            self.server.calls.append((url.path, dict(parse_qsl(url.query))))
            self.server.news.notify_all()
        if url.path != "/schedule":
            self.answer(200, "application/json", "{}")
        elif self.server.mood == "spent":
            self.answer(429, "application/json", json.dumps({"left": 3, "wait": 3720}))
        elif self.server.mood == "busy":
            self.answer(200, "text/event-stream", "event: failed\n\n")
        else:
            self.server.lent += 1
            lent = {
                "idle": self.server.lent > 1,
                "nvidiaIndex": 0,
                "nvidiaUUID": self.server.gpu,
                "allowToken": f"loan-{self.server.lent}",
            }
            self.answer(200, "application/json", json.dumps(lent))

    def answer(self, status: int, kind: str, text: str):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())
