"""In a frame of another origin, as high as its page, as a Space is shown: what would be in sight on
a page of its own is in sight, and the address of the page around follows."""

import http.server
import threading
from pathlib import Path

import pytest
from test_tabs import soon

SPACE = "https://huggingface.co/spaces/somebody/explorer"
RESIZER = Path(__file__).parents[1] / "lint/node_modules/iframe-resizer/js/iframeResizer.js"
SCREENS = {"phone": (360, 740), "laptop": (1280, 720)}
ON_A_PHONE = pytest.mark.parametrize("context", [SCREENS["phone"]], ids=["phone"], indirect=True)
OWN = "__theme=light&__sign=secret"  # what a Space adds for its frame

# The page around: what it is told of an address becomes its own.
AROUND = """<!doctype html><body style="margin: 0"><div style="height: 60px">Space</div>
<iframe scrolling="no" allow="local-network-access; clipboard-write"
  style="width: 1px; min-width: 100%; border: 0; display: block"></iframe>
<script>
  const frame = document.querySelector("iframe");
  frame.src = "ADDRESS/?" + [location.search.slice(1), "OWN"].filter(Boolean).join("&");
  window.told = [];
  addEventListener("message", ({ data }) => {
    if (data.queryString === undefined) return;
    told.push(data);
    history.replaceState(null, "", "?" + data.queryString + data.hash);
  });
</script>"""
BY_ITSELF = "<script>frame.style.height = '2400px';</script>"
RESIZED = "<script src='/iframeResizer.js'></script><script>iFrameResize({}, frame);</script>"


def around(address: str, rest: str) -> str:
    return AROUND.replace("ADDRESS", address).replace("OWN", OWN) + rest


@pytest.fixture(params=SCREENS.values(), ids=SCREENS)
def context(chrome, request):
    """A newcomer's browser with a screen of this size."""
    width, height = request.param
    allowed = ["local-network-access"]  # from a public address to this machine
    context = chrome.new_context(viewport={"width": width, "height": height}, permissions=allowed)
    context.set_default_timeout(60_000)
    yield context
    context.close()


@pytest.fixture
def space(context, address):
    """Opens a Space with a query -> (the page around, the frame). iframe-resizer does the rest."""
    if not RESIZER.exists():
        pytest.skip("npm ci --prefix tests/lint brings iframe-resizer")
    script = {"content_type": "text/javascript", "body": RESIZER.read_text()}
    html = {"content_type": "text/html", "body": around(address, RESIZED)}
    context.route("https://huggingface.co/**", lambda route: route.fulfill(**html))
    context.route("https://huggingface.co/*.js", lambda route: route.fulfill(**script))
    return lambda query="?trace=d2-word": opened(context, SPACE + query)


@pytest.fixture
def stranger(context, address):
    """As `space`, on a page of a second local origin that knows nothing of what it shows."""
    body = around(address, BY_ITSELF).encode()

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://localhost:{server.server_port}/"
        yield lambda query="?trace=d2-word": opened(context, origin + query)
        server.shutdown()


def opened(context, url: str):
    page = context.new_page()
    page.goto(url)
    inner = page.frame_locator("iframe")
    inner.locator(".d2-transport").wait_for()
    return page, inner


def look_inside(page, inner) -> None:
    inner.get_by_role("button", name="Look inside").press(
        "Enter"
    )  # a click may miss while it loads
    inner.locator(".d2-tabbar").wait_for()
    page.evaluate("scrollTo(0, 0)")  # to reach the button it has scrolled


def state(inner) -> dict:
    return inner.locator("body").evaluate("() => D2Stage.stage.state()")


def in_sight(page, element) -> bool:
    """Whether all of an element of the frame is on the screen."""
    box = element.bounding_box()  # of the page around
    return box["y"] >= -1 and box["y"] + box["height"] <= page.viewport_size["height"] + 1


def stays(page, clock) -> None:
    """The clock is on the screen wherever the page around is scrolled, and goes back."""
    top = clock.bounding_box()["y"]
    for by in (500, 507, 350):
        page.evaluate("y => scrollTo(0, y)", top + by)
        soon(lambda: in_sight(page, clock) and clock.bounding_box()["y"] < 30, True, 60)
    page.evaluate("scrollTo(0, 0)")
    soon(lambda: clock.bounding_box()["y"] == pytest.approx(top, abs=1), True, 60)


def card_stays(page, inner) -> None:
    card = inner.locator(".d2-coach[data-settled=true]")
    card.wait_for()
    for _ in range(2):
        for part in (card, card.get_by_role("button").last):
            soon(lambda part=part: in_sight(page, part), True, 60)
        page.evaluate("scrollBy(0, 400)")


def test_the_clock_stays_on_the_screen(space):
    page, inner = space()
    look_inside(page, inner)
    stays(page, inner.locator(".d2-transport"))


def test_a_lessons_card_is_on_the_screen_with_its_buttons(space):
    page, inner = space()
    inner.locator(".d2-lessons-first").click()
    card_stays(page, inner)


@ON_A_PHONE
def test_the_page_around_need_not_help(stranger):
    page, inner = stranger()
    look_inside(page, inner)
    stays(page, inner.locator(".d2-transport"))
    page.evaluate("scrollTo(0, 0)")
    inner.locator(".d2-lessons-first").click()
    card_stays(page, inner)
    assert state(inner)["lesson"]  # a place that a Space would be told
    assert page.evaluate("told") == [], "no other page is told where a reader is"


@ON_A_PHONE
def test_the_frame_is_as_high_as_its_page(space):
    page, inner = space()
    look_inside(page, inner)
    unused = """() => {
      const last = Math.max(...[...document.querySelectorAll(".gradio-container .column > *")]
        .map(el => el.getBoundingClientRect().bottom));
      return [innerHeight - last, document.documentElement.scrollHeight - innerHeight];
    }"""

    def fits() -> bool:
        below, cut = inner.locator("body").evaluate(unused)
        return 0 <= below < 300 and cut <= 2

    soon(fits, True, 60)


@ON_A_PHONE
def test_the_address_of_the_page_around_follows(space):
    page, inner = space()
    look_inside(page, inner)
    inner.get_by_role("tab", name="Cache").click()
    page.wait_for_function("told.at(-1)?.queryString.includes('tab=cache')")
    assert page.url == f"{SPACE}?trace=d2-word&tab=cache"  # without what is the frame's


@ON_A_PHONE
def test_a_link_works_through_the_frame(space):
    page, inner = space("?trace=d2-word&tab=cache&at=4")
    soon(lambda: [state(inner)[k] for k in ("tab", "step")], ["cache", 3], 60)
    page.close()
    page, inner = space("?lesson=two-stages&card=2")
    card_stays(page, inner)
    soon(lambda: state(inner)["lesson"], {"lesson": "two-stages", "card": 2}, 60)


@ON_A_PHONE
def test_the_opening_plays_in_the_frame(space):
    _, inner = space("")
    soon(lambda: state(inner)["playing"] and state(inner)["step"] > 1, True, 60)
