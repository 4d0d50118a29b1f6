// Shows what a model wrote, as Markdown with formulas and code. A model is not trusted: HTML that it
// writes is text, images are never fetched, links are of http and https, and what the libraries make
// of the rest is sanitised before it is part of the page.

import "./vendor/dompurify/purify.min.js";
import "./vendor/katex/katex.min.js";
import hljs from "./vendor/highlight/highlight.min.js";
import { Marked } from "./vendor/marked/marked.esm.js";
import { escapeHtml, extensions, renderMath } from "./math.js";
import { make } from "./text.js";

const LONGEST_COLOURED = 30_000; // characters; colours of longer code would hold up the page
const TAGS = ["a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
  "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"];
const ALLOWED = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ["align", "class", "data-language", "href", "start"],
  ADD_URI_SAFE_ATTR: ["align", "data-language", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^https?:\/\//i,
  RETURN_DOM_FRAGMENT: true,
};

const markdown = new Marked({ gfm: true, breaks: true }, {
  extensions,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ href, text }) => {
      const words = escapeHtml(`[image: ${text || "without a description"}]`);
      return /^https?:\/\//i.test(href) ? `<a href="${escapeHtml(href)}">${words}</a>` : words;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const tag = `h${Math.min(depth + 2, 6)}`; // below the page's own
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
    },
    code: ({ text, lang }) => {
      const language = escapeHtml(lang?.match(/^[\w+#.-]*/)[0] ?? "");
      return `<pre data-language="${language}">${escapeHtml(text)}</pre>`;
    },
  },
});

const shown = new WeakMap(); // element -> the blocks that it holds, as {key, nodes}

/**
 * Show a text in an element.
 *
 * Blocks that are as they were when it was shown before stay the same nodes: an answer that grows
 * keeps what is selected and focused in it, and costs only its last block.
 *
 * @param copy called with the text of a code block.
 */
export function show(element, text, copy) {
  const tokens = markdown.lexer(text);
  const links = JSON.stringify(tokens.links); // a definition below changes the blocks above
  const keyed = tokens.map((token) => ({ token, key: token.raw + links }));
  const before = shown.get(element) ?? [];
  let same = 0;
  while (same < before.length && same < keyed.length && before[same].key === keyed[same].key) same += 1;
  const stays = before.slice(0, same);
  const added = keyed.slice(same).map(({ token, key }) => ({ key, nodes: render(token, copy) }));
  const kept = new Set(stays.flatMap((block) => block.nodes));
  for (const node of [...element.childNodes]) {
    if (!kept.has(node)) node.remove();
  }
  element.append(...added.flatMap((block) => block.nodes));
  shown.set(element, [...stays, ...added]);
}

function sanitised(html) {
  const fragment = globalThis.DOMPurify.sanitize(html, ALLOWED);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  return fragment;
}

function render(token, copy) {
  const fragment = sanitised(markdown.parser([token]));
  renderMath(fragment);
  for (const table of fragment.querySelectorAll("table")) table.replaceWith(scrolling(table));
  for (const pre of fragment.querySelectorAll("pre")) pre.replaceWith(codeBlock(pre, copy));
  return [...fragment.childNodes].filter((node) => node.nodeType === Node.ELEMENT_NODE || node.data.trim());
}

function scrolling(table) {
  const frame = make("div", { className: "wide-table", tabIndex: 0, role: "region", "aria-label": "Table" });
  frame.append(table.cloneNode(true));
  return frame;
}

function codeBlock(pre, copy) {
  const text = pre.textContent;
  const { language } = pre.dataset;
  const code = make("code", {}, coloured(text, language));
  const named = language || "Code";
  return make("div", { className: "code" },
    make("div", { className: "code-head" }, make("span", {}, named),
      make("button", { type: "button", className: "text", "aria-label": "Copy this code", onclick: () => copy(text) },
        "Copy")),
    make("pre", { tabIndex: 0, role: "region", "aria-label": `Code ${language}`.trim(), "data-language": language },
      code));
}

function coloured(text, language) {
  if (!hljs.getLanguage(language) || text.length > LONGEST_COLOURED) return text;
  return sanitised(hljs.highlight(text, { language, ignoreIllegals: true }).value);
}
