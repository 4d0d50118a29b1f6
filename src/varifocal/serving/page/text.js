// Shows what a model wrote: as text, never as HTML. Fenced and inline code are told apart, no more.

/** Make an element with properties, attributes (by `aria-` or `data-`) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/**
 * Split a text at its ``` fences.
 *
 * A fence that is not closed yet counts as open to the end, so that code looks like code while it
 * is written. Returns parts {code, language, text}.
 */
export function parts(text) {
  const found = [];
  const add = (code, language, lines) => {
    const joined = lines.join("\n");
    if (code || joined.trim()) found.push({ code, language, text: code ? joined : joined.trim() });
  };
  let [code, language, lines] = [false, "", []];
  for (const line of text.split("\n")) {
    const fence = line.match(/^\s{0,3}```\s*([\w+#.-]*)\s*$/);
    if (fence && (!code || !fence[1])) {
      add(code, language, lines);
      [code, language, lines] = [!code, fence[1], []];
    } else {
      lines.push(line);
    }
  }
  add(code, language, lines);
  return found;
}

/** Put a text into an element, in place of what was there. */
export function show(element, text) {
  element.replaceChildren(...parts(text).flatMap((part) => (part.code ? block(part) : prose(part))));
}

function block({ language, text }) {
  const code = make("code", {}, text);
  const pre = make("pre", { tabIndex: 0, role: "region", "aria-label": `Code ${language}`.trim() }, code);
  if (language) pre.dataset.language = language;
  return [pre];
}

function prose({ text }) {
  return text.split(/\n{2,}/).map((paragraph) => {
    const pieces = paragraph.split(/(`[^`\n]+`)/);
    const nodes = pieces.map((piece, index) =>
      index % 2 ? make("code", {}, piece.slice(1, -1)) : document.createTextNode(piece));
    return make("p", {}, ...nodes);
  });
}
