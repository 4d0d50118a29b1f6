// Shows turns: a question with its images, and one or two answers.

import { show } from "./markdown.js";
import { routingChart } from "./routing.js";
import { make } from "./text.js";

const ROUTES = { text: "read as words alone", image: "read as words and images", base: "without training" };
const OPEN = new Set(); // turns whose routing is open, so that it stays so when drawn anew

/**
 * Makes and renews the elements of turns.
 *
 * `actions` are called with a turn: edit, retry, step(turn, by), copy(text), look(images, index, alt).
 */
export class View {
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.layers = [];
    this.names = {};
    this.basesImages = false; // whether the base model takes images
    this.items = new Map();
  }

  /**
   * Show all turns. `state`: {turns, versions, columns, running, editing}; `versions` gives a turn's,
   * `editing` is the turn that is edited.
   *
   * What is there already stays the same element, so that focus is kept and a screen reader reads
   * an answer out once.
   */
  draw(state) {
    const items = new Map(state.turns.map((turn) => [turn.id, this.item(turn, state)]));
    this.items = items;
    const wanted = [...items.values()].map((item) => item.element);
    for (const element of [...this.list.children]) {
      if (!wanted.includes(element)) element.remove();
    }
    wanted.forEach((element, index) => {
      if (this.list.children[index] !== element) this.list.append(element);
    });
    state.turns.forEach((turn, index) => this.arrange(turn, state, index === state.turns.length - 1));
  }

  /** The turn's element, made anew only where other columns are shown. */
  item(turn, state) {
    const shown = state.columns.filter((column) => turn.answers[column]);
    const key = JSON.stringify([shown, state.columns.length]);
    const there = this.items.get(turn.id);
    if (there?.turn === turn && there.key === key) return there;
    const item = { turn, key, shown, places: {}, deeds: make("div", { className: "deeds" }) };
    const answers = make("div", { className: "answers" },
      ...shown.map((column) => this.answer(item, column, state)));
    answers.classList.toggle("two", shown.length > 1);
    item.element = make("li", { className: "turn" }, this.question(item), answers);
    return item;
  }

  /** Bring a turn's words and buttons up to date. */
  arrange(turn, state, isNewest) {
    const item = this.items.get(turn.id);
    const versions = state.versions(turn);
    const place = versions.indexOf(turn);
    item.element.classList.toggle("faded", Boolean(state.editing) && turn.id >= state.editing.id);
    const isFree = !state.running && !state.editing;
    const key = JSON.stringify([isNewest, isFree, this.layers.length, turn.answers, place, versions.length]);
    if (item.arranged === key) return;
    item.arranged = key;
    item.deeds.replaceChildren(...(isFree ? this.deeds(turn, place, versions.length) : []));
    for (const column of item.shown) {
      this.renew(turn, column);
      item.places[column].after.replaceChildren(...this.after(turn, column, isNewest, isFree));
    }
  }

  /** What stands below a question: editing it, and its other versions. */
  deeds(turn, place, count) {
    const edit = button("Edit", "Edit this question", () => this.actions.edit(turn));
    if (count < 2) return [edit];
    const earlier = button("‹", "Show the version before", () => this.actions.step(turn, -1));
    const later = button("›", "Show the version after", () => this.actions.step(turn, 1));
    [earlier.disabled, later.disabled] = [place === 0, place === count - 1];
    const told = make("span", { className: "versions" }, `${place + 1} of ${count}`);
    return [make("div", { className: "stepper", role: "group", "aria-label": "Versions of this question" },
      earlier, told, later), edit];
  }

  /** Keep the keyboard on the button that was pressed, or on the other one at the end. */
  focusStepper(turn, by) {
    const buttons = [...this.items.get(turn.id).deeds.querySelectorAll(".stepper button")];
    const pressed = by < 0 ? buttons[0] : buttons[1];
    (pressed.disabled ? buttons.find((one) => one !== pressed) : pressed).focus();
  }

  question({ turn, deeds }) {
    const article = make("article", { className: "question", "aria-label": "You asked" });
    if (turn.images.length) {
      article.append(make("div", { className: turn.images.length > 1 ? "images grid" : "images" },
        ...turn.images.map((image, index) => this.image(image, index, turn))));
    }
    if (turn.text) article.append(make("p", { className: "bubble" }, turn.text));
    article.append(deeds);
    return article;
  }

  image(image, index, turn) {
    const alt = (at) => `Image ${at + 1} of your question: ${turn.text || "without words"}`;
    const shown = make("img", { src: image, alt: alt(index) });
    return make("button", {
      type: "button", "aria-label": `Look at image ${index + 1} of ${turn.images.length}`,
      onclick: () => this.actions.look(turn.images, index, alt),
    }, shown);
  }

  answer(item, column, state) {
    const label = `${this.names[column]} answered`;
    const article = make("article", { className: `answer ${column}`, "aria-label": label });
    if (state.columns.length > 1) {
      const name = column === "base" ? "Base model" : "Adapted";
      article.append(make("h2", { title: this.names[column] }, name),
        make("p", { className: "told" }, column === "base" ? this.baseTold(item.turn, state) : "What you trained"));
    }
    const place = {
      body: make("div", { className: "body", "aria-live": "polite" }),
      small: make("p", { className: "small" }),
      after: make("div", { className: "after" }),
    };
    article.append(place.body, place.small, place.after);
    item.places[column] = place;
    return article;
  }

  /** What the base model has to answer from. */
  baseTold(turn, state) {
    const before = state.turns.slice(0, state.turns.indexOf(turn) + 1);
    const hasImages = before.some((one) => one.images.length);
    const same = "The same model before training";
    return hasImages && !this.basesImages ? `${same}: it sees your words, not your images` : same;
  }

  /** What stands below an answer: buttons, and how it was routed. */
  after(turn, column, isNewest, isFree) {
    const answer = turn.answers[column];
    if (answer.state === "writing") return [];
    const row = make("div", { className: "deeds" });
    if (answer.text) {
      row.append(button("Copy", "Copy this answer", () => this.actions.copy(answer.text)));
    }
    if (isFree) {
      row.append(button("Try again", "Try again: this answer", () => this.actions.retry(turn, column)));
    }
    const chart = answer.route ? this.routing(turn, column) : null;
    return chart ? [row, chart] : [row];
  }

  /** How the answer was routed; nothing where the model has no routing table. */
  routing(turn, column) {
    const { route } = turn.answers[column];
    if (!this.layers.length || route === "base") return null;
    const place = `${turn.id} ${column}`;
    const details = make("details", { className: "how", open: OPEN.has(place) },
      make("summary", {}, "How it was routed"),
      make("p", {}, "Each layer has two small trained branches and mixes them one way for questions with images, another way " +
        "for words alone."),
      routingChart(this.layers, route));
    details.addEventListener("toggle", () => {
      OPEN[details.open ? "add" : "delete"](place);
      if (details.open) details.scrollIntoView({ block: "nearest" });
    });
    return details;
  }

  /** Bring one answer's text and small print up to date. */
  renew(turn, column) {
    const place = this.items.get(turn.id)?.places[column];
    if (!place) return;
    const answer = turn.answers[column];
    const writing = answer.state === "writing";
    place.body.setAttribute("aria-busy", String(writing)); // read out when it is whole
    place.body.classList.toggle("writing", writing);
    show(place.body, answer.text, this.actions.copy);
    if (answer.state === "failed") place.body.append(make("p", { className: "failure" }, answer.told));
    place.small.textContent = smallPrint(answer);
  }
}

function button(text, label, onclick) {
  return make("button", { type: "button", className: "text", "aria-label": label, onclick }, text);
}

/** Tell route, tokens and speed: how long until the first word, and how fast it goes on. */
export function smallPrint(answer) {
  if (answer.state === "writing") return answer.told;
  const told = [];
  if (answer.state === "stopped") told.push("stopped");
  if (answer.route) told.push(ROUTES[answer.route] ?? answer.route);
  if (answer.usage) {
    const { prompt_tokens: read, completion_tokens: written } = answer.usage;
    const known = answer.usage.prompt_tokens_details?.cached_tokens;
    told.push(`${read} tokens read${known ? ` (${known} remembered)` : ""}`);
    told.push(`${written} written`);
    const writing = answer.seconds - answer.first;
    if (answer.first !== null) told.push(`first word after ${answer.first.toFixed(1)} s`);
    if (written > 1 && writing > 0) told.push(`then ${((written - 1) / writing).toFixed(1)} tokens/s`);
  }
  if (answer.cut) told.push("ended at the longest length");
  return told.map((part) => part.replaceAll(" ", "\u00a0")).join("\u00a0· ");
}
