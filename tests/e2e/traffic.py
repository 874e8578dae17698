"""What a page asks of the server, so that a test can wait until all of it is answered."""


class Traffic:
    """The requests of a tab since this was made."""

    def __init__(self, tab):
        self.tab, self.open = tab, set()
        tab.on("request", self._asked)
        tab.on("requestfinished", self._answered)
        tab.on("requestfailed", self._answered)

    def _asked(self, request) -> None:
        if "/queue/" in request.url or "/run/" in request.url:
            self.open.add(request)

    def _answered(self, request) -> None:
        self.open.discard(request)

    def answered(self) -> None:
        """Waits until nothing is on its way: Gradio has a stream open while it waits for an
        answer."""
        while self.open:
            self.tab.wait_for_timeout(20)  # events are told meanwhile
