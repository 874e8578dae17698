"""What a page asks of the server, so that a test can wait until all of it is answered."""


class Traffic:
    """The requests of a tab since this was made."""

    def __init__(self, tab):
        self.tab, self.open = tab, set()
        tab.on("request", self._asked)
        tab.on("requestfinished", self.open.discard)
        tab.on("requestfailed", self.open.discard)

    def _asked(self, request) -> None:
        if "/queue/" in request.url or "/run/" in request.url:
            self.open.add(request)

    def answered(self) -> None:
        """Waits until nothing is on its way. Gradio has a stream open while it waits for anything,
        which it ends with a request that is finished, or given up."""
        while self.open:
            with self.tab.expect_event("requestfinished", lambda r: r in self.open):
                pass
