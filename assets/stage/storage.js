/* What the browser keeps between visits. Storage may be forbidden, in a frame for one, or hold
 * something else: then nothing is remembered. */

// The text that was kept under a key; null: none.
function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

// Keeps a text under a key; null: forgets it.
function keep(key, text) {
  try {
    if (text === null) localStorage.removeItem(key);
    else localStorage.setItem(key, text);
  } catch {
    // as above
  }
}

// The names that were kept under a key.
function recallNames(key) {
  try {
    const names = JSON.parse(recall(key) ?? "[]");
    return Array.isArray(names) ? names.map(String) : [];
  } catch {
    return [];
  }
}

const keepNames = (key, names) => keep(key, JSON.stringify(names));

export { keep, keepNames, recall, recallNames };
