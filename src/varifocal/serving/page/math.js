// LaTeX in Markdown: what is between $, $$, \( \) or \[ \], for marked.

const INLINE = [
  /^\$\$([^$]+?)\$\$/,
  /^\$(?![\s$])((?:\\[^]|[^\\$\n])+?)(?<!\s)\$(?!\d)/, // "$5 and $6" are prices
  /^\\\(([^]+?)\\\)/,
  /^\\\[([^]+?)\\\]/,
];
const BLOCK = /^ {0,3}(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\]) *(?:\n|$)/;

const place = (className) => ({ tex }) => `<span class="${className}">${escapeHtml(tex)}</span>`;

export function escapeHtml(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (one) => names[one]);
}

const inline = {
  name: "math",
  level: "inline",
  start: (text) => text.match(/\$|\\[([]/)?.index,
  tokenizer(text) {
    for (const form of INLINE) {
      const found = text.match(form);
      if (found) return { type: "math", raw: found[0], tex: found[1].trim() };
    }
    return undefined;
  },
  renderer: place("tex"),
};

const block = {
  name: "mathBlock",
  level: "block",
  start: (text) => text.match(/(?:^|\n) {0,3}(?:\$\$|\\\[)/)?.index,
  tokenizer(text) {
    const found = text.match(BLOCK);
    return found && { type: "mathBlock", raw: found[0], tex: (found[1] ?? found[2]).trim() };
  },
  renderer: (token) => `<p>${place("tex wide")(token)}</p>`,
};

export const extensions = [inline, block];

/** Put formulas in the place of their sources; one that is wrong stays as it was written. */
export function renderMath(root) {
  for (const span of root.querySelectorAll("span.tex")) {
    const tex = span.textContent;
    const displayMode = span.classList.contains("wide");
    if (displayMode) span.tabIndex = 0; // it may be wider than the page
    const bounds = { maxSize: 20, maxExpand: 200 };
    globalThis.katex.render(tex, span, { displayMode, throwOnError: false, errorColor: "currentColor", ...bounds });
  }
}
