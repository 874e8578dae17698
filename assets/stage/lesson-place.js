/* Where a lesson's card is put, so that it does not cover what it talks about. Pure.
 *
 * Boxes are {left, top, width, height} in pixels of the view, as getBoundingClientRect gives them. */
const GAP = 16; // between the card and what it points at, and to the edges of the view
const RING = 8; // what a ring adds around a box

const within = (x, low, high) => Math.max(low, Math.min(x, Math.max(low, high)));

// The area that two boxes share.
function overlap(a, b) {
  const width = Math.min(a.left + a.width, b.left + b.width) - Math.max(a.left, b.left),
    height = Math.min(a.top + a.height, b.top + b.height) - Math.max(a.top, b.top);
  return Math.max(0, width) * Math.max(0, height);
}

// The places for a card of a size, the best ones first: on the left of a box, on its right, below
// it, above it, then the corners of the view.
function places(box, size, view) {
  const right = view.left + view.width - size.width - GAP,
    bottom = view.top + view.height - size.height - GAP,
    left = view.left + GAP,
    top = view.top + GAP,
    beside = within(box.top, top, bottom),
    along = within(box.left, left, right);
  return [
    [box.left - size.width - GAP - RING, beside],
    [box.left + box.width + GAP + RING, beside],
    [along, box.top + box.height + GAP + RING],
    [along, box.top - size.height - GAP - RING],
    [right, bottom],
    [left, bottom],
    [right, top],
    [left, top],
  ].map(([x, y]) => ({ left: within(x, left, right), top: within(y, top, bottom), ...size }));
}

// The first place of a card that does not cover a box, or the one that covers least of it.
// size: {width, height} of the card; view: the box that can be seen.
function placeBeside(box, size, view) {
  const ring = {
    left: box.left - RING,
    top: box.top - RING,
    width: box.width + 2 * RING,
    height: box.height + 2 * RING,
  };
  const found = places(box, size, view),
    covered = found.map((place) => overlap(place, ring));
  return found[covered.indexOf(Math.min(...covered))];
}

export { overlap, placeBeside };
