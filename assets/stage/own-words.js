/* Words of the address that are not the page's: those of Gradio and of a Space's frame, such as
 * __theme and __sign. They stay in the window's address, and are in none that others get: __sign is
 * the reader's own key to a private Space. */

const ownWords = (search) =>
  [...new URLSearchParams(search)].filter(([name]) => name.startsWith("__"));

// An address without them.
function forOthers(href) {
  const url = new URL(href);
  const own = ownWords(url.search).map(([name]) => name);
  for (const name of own) url.searchParams.delete(name);
  return own.length ? url.href : href;
}

export { forOthers, ownWords };
