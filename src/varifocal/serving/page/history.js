// The list of conversations: found, named, exported, imported, deleted.

import { nameOf } from "./conversation.js";
import { download, fromJson, toJson, toMarkdown } from "./exchange.js";
import { list, load, remove, save } from "./store.js";
import { make } from "./text.js";

const at = (id) => document.getElementById(id);
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/**
 * The dialog with the list.
 *
 * `actions`: current() gives the conversation that is shown, names() the models' by column; open(id),
 * renamed(id, name), removed(id) and tell(sentence) are called.
 */
export class History {
  constructor(actions) {
    this.actions = actions;
    this.dialog = at("history");
    at("open-history").addEventListener("click", () => this.show());
    at("close-history").addEventListener("click", () => this.dialog.close());
    at("search").addEventListener("input", () => this.draw());
    at("import").addEventListener("click", () => at("import-file").click());
    at("import-file").addEventListener("change", (event) => {
      this.read(event.target.files[0]);
      event.target.value = "";
    });
  }

  async show() {
    at("search").value = "";
    this.tell("");
    await this.draw();
    this.dialog.showModal();
  }

  tell(sentence) {
    at("history-notice").textContent = sentence;
  }

  async draw() {
    const wanted = at("search").value.trim().toLowerCase();
    const found = (await list()).filter((one) => !wanted || textOf(one).includes(wanted));
    at("conversations").replaceChildren(...found.map((one) => this.row(one)));
    at("none-found").hidden = found.length > 0;
    at("none-found").textContent = wanted ? "Nothing found." : "No conversation yet.";
  }

  row(conversation) {
    const name = nameOf(conversation);
    const isShown = conversation.id === this.actions.current().id;
    const open = make("button", { type: "button", className: "open", onclick: () => this.open(conversation.id) },
      make("span", { className: "name" }, name),
      make("span", { className: "date" }, DATE.format(conversation.updated)));
    if (isShown) open.setAttribute("aria-current", "true");
    const deed = (text, label, onclick) =>
      make("button", { type: "button", className: "text", "aria-label": `${label}: ${name}`, onclick }, text);
    const more = make("details", { className: "more" },
      make("summary", { "aria-label": `More for: ${name}` }, "⋯"),
      make("div", { className: "deeds" },
        deed("Rename", "Rename", () => this.rename(conversation)),
        deed("Markdown", "Export as Markdown", () => this.export(conversation.id, "text/markdown")),
        deed("JSON", "Export as JSON", () => this.export(conversation.id, "application/json")),
        deed("Delete", "Delete", () => this.remove(conversation))));
    return make("li", {}, open, more);
  }

  open(id) {
    this.dialog.close();
    this.actions.open(id);
  }

  async rename(conversation) {
    const name = prompt("Name of the conversation", nameOf(conversation));
    if (name === null) return;
    const whole = await load(conversation.id);
    await save({ ...whole, name: name.trim() });
    this.actions.renamed(conversation.id, name.trim());
    await this.draw();
  }

  async export(id, type) {
    const conversation = await load(id);
    const text = type === "application/json" ? toJson(conversation) : toMarkdown(conversation, this.actions.names());
    download(nameOf(conversation), text, type);
  }

  async remove(conversation) {
    if (!confirm(`Delete "${nameOf(conversation)}" for ever?`)) return;
    await remove(conversation.id);
    this.actions.removed(conversation.id);
    await this.draw();
    at("search").focus();
  }

  async read(file) {
    try {
      const conversation = fromJson(await file.text());
      await save(conversation);
      this.tell("");
      this.open(conversation.id);
    } catch (error) {
      this.tell(error.message);
    }
  }
}

function textOf(conversation) {
  const answers = conversation.turns.flatMap((turn) => Object.values(turn.answers).map((answer) => answer.text));
  return [conversation.name, ...conversation.turns.map((turn) => turn.text), ...answers].join("\n").toLowerCase();
}
