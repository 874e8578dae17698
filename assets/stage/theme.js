/* Whether the page around the stage is dark. */

// Calls apply(dark) now and whenever the theme changes; disconnect() of what it returns ends that.
function watchTheme(root, on, apply) {
  const night = globalThis.matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    // Gradio decides by its class alone
    const hosted = root.closest("gradio-app, .gradio-container");
    apply(Boolean(root.closest(".dark")) || (!hosted && night.matches));
  };
  const themes = new MutationObserver(read);
  for (const el of [document.documentElement, document.body])
    themes.observe(el, { attributes: true, attributeFilter: ["class"] });
  on(night, "change", read);
  read();
  return themes;
}

export { watchTheme };
