"""In a frame as high as its page, as a Space is shown: what would be in sight on a page of its own
is in sight, and the address of the page around follows."""

import pytest
from test_tabs import soon

SPACE = "https://huggingface.co/spaces/somebody/explorer"
# The page around: the frame is as high as its page, and whoever asks is told what is in sight.
AROUND = """<!doctype html><body style="margin: 0"><div style="height: 60px">Space</div>
<iframe src="ADDRESS" allow="local-network-access"
  style="width: 100%; height: 2000px; border: 0; display: block"></iframe>
<script>
  const frame = document.querySelector("iframe");
  const tell = () => frame.contentWindow.postMessage("[iFrameSizer]pageInfo:" + JSON.stringify({
    offsetTop: frame.offsetTop, offsetLeft: 0, scrollTop: scrollY, scrollLeft: 0,
    clientHeight: innerHeight, clientWidth: innerWidth, iframeHeight: frame.offsetHeight }), "*");
  window.told = [];
  addEventListener("message", ({ data }) => {
    if (data.queryString !== undefined) {
      told.push(data);
      history.replaceState(null, "", "?" + data.queryString.replace(/^[?]/, "") + data.hash);
    }
    if (!String(data).startsWith("[iFrameSizer]")) return;
    const [, height, width, what] = data.slice(13).split(":");
    if (what === "pageInfo") { addEventListener("scroll", tell); addEventListener("resize", tell); }
    if (what === "scrollToOffset") scrollTo(0, frame.offsetTop + Number(height));
    if (what === "size") frame.style.height = height + "px";
    tell();
  });
</script>"""
# The part of iframe-resizer's script in the frame that the page uses, in its messages.
WITHIN = """{
  const send = (text) => parent.postMessage("[iFrameSizer]frame:" + text, "*");
  let told = () => {};
  addEventListener("message", ({ data }) => {
    const start = "[iFrameSizer]pageInfo:";
    if (String(data).startsWith(start)) told(JSON.parse(data.slice(start.length)));
  });
  window.parentIFrame = {
    getPageInfo: (what) => { told = what; send("0:0:pageInfo"); },
    scrollToOffset: (x, y) => send(`${y}:${x}:scrollToOffset`),
    autoResize: () => {},  // Gradio measures by itself
    size: (height) => send(`${height}:0:size`),
  };
}"""


@pytest.fixture(params=[(360, 740), (1280, 720)], ids=["phone", "laptop"])
def space(chrome, address, request):
    """(the page around, the frame) on a screen of this size, as a newcomer has it."""
    width, height = request.param
    allowed = ["local-network-access"]  # from a public address to this machine
    context = chrome.new_context(viewport={"width": width, "height": height}, permissions=allowed)
    script = {"content_type": "text/javascript", "body": WITHIN}
    context.route("**/iframeResizer.contentWindow.min.js", lambda route: route.fulfill(**script))
    html = {
        "content_type": "text/html",
        "body": AROUND.replace("ADDRESS", f"{address}/?trace=d2-word"),
    }
    context.route("https://huggingface.co/**", lambda route: route.fulfill(**html))
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(SPACE)
    inner = page.frame_locator("iframe")
    inner.locator(".d2-transport").wait_for()
    yield page, inner
    context.close()


def look_inside(page, inner) -> None:
    inner.get_by_role("button", name="Look inside").press(
        "Enter"
    )  # a click may miss while it loads
    inner.locator(".d2-tabbar").wait_for()
    page.evaluate("scrollTo(0, 0)")  # to reach the button it has scrolled


def in_sight(page, element) -> bool:
    """Whether all of an element of the frame is on the screen."""
    box = element.bounding_box()  # of the page around
    return box["y"] >= -1 and box["y"] + box["height"] <= page.viewport_size["height"] + 1


def test_the_clock_stays_on_the_screen(space):
    page, inner = space
    look_inside(page, inner)
    clock = inner.locator(".d2-transport")
    top = clock.bounding_box()["y"]
    page.evaluate("y => scrollTo(0, y)", top + 500)
    inner.locator(".d2-topbar[style*=translate]").wait_for()
    assert in_sight(page, clock) and clock.bounding_box()["y"] < 30
    page.evaluate("scrollTo(0, 0)")
    inner.locator(".d2-topbar:not([style*=translate])").wait_for()
    assert clock.bounding_box()["y"] == pytest.approx(top, abs=1)  # back in its place


def test_a_lessons_card_is_on_the_screen_with_its_buttons(space):
    page, inner = space
    inner.locator(".d2-lessons-first").click()
    card = inner.locator(".d2-coach[data-settled=true]")
    card.wait_for()
    for _ in range(2):
        for part in (card, card.get_by_role("button").last):
            soon(lambda part=part: in_sight(page, part), True, 60)
        page.evaluate("scrollBy(0, 400)")


def test_the_address_of_the_page_around_follows(space):
    page, inner = space
    look_inside(page, inner)
    inner.get_by_role("tab", name="Cache").click()
    page.wait_for_function("told.at(-1)?.queryString.includes('tab=cache')")
    assert page.url == f"{SPACE}?trace=d2-word&tab=cache"
