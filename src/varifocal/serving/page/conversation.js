// A conversation: a tree of turns, of which one branch is shown, and what is sent of it.

/** The columns: the adapted model, and the same model without its adapter. */
export const COLUMNS = ["adapted", "base"];

const LONGEST_NAME = 60; // characters

export function newConversation() {
  const now = Date.now();
  const id = `${now.toString(36)}-${Math.random().toString(36).slice(2)}`; // http has no randomUUID
  return { id, name: "", created: now, updated: now, system: "", turns: [], chosen: {} };
}

/** Add a turn after `parent` (a turn's id, 0 at the beginning) and show it. */
export function addTurn(conversation, parent, text, images) {
  const id = Math.max(0, ...conversation.turns.map((turn) => turn.id)) + 1;
  const turn = { id, parent, text, images, answers: {} };
  conversation.turns.push(turn);
  choose(conversation, turn);
  return turn;
}

/** The turns that are shown, from the first to the newest. */
export function branch(conversation) {
  const shown = [];
  for (let parent = 0; ; parent = shown.at(-1).id) {
    const next = conversation.turns.filter((turn) => turn.parent === parent);
    if (!next.length) return shown;
    shown.push(next.find((turn) => turn.id === conversation.chosen[parent]) ?? next.at(-1));
  }
}

/** The versions of a turn: those that were asked at the same place. */
export function versions(conversation, turn) {
  return conversation.turns.filter((other) => other.parent === turn.parent);
}

export function choose(conversation, turn) {
  conversation.chosen[turn.parent] = turn.id;
}

/** What a conversation is called: as a person named it, or by its first question. */
export function nameOf(conversation) {
  const first = conversation.turns[0];
  const words = conversation.name || first?.text || (first ? "An image" : "New conversation");
  const line = words.replace(/\s+/g, " ").trim();
  return line.length > LONGEST_NAME ? `${line.slice(0, LONGEST_NAME - 1)}…` : line;
}

export function newAnswer() {
  return { text: "", state: "writing", route: null, usage: null, seconds: null, first: null, told: "" };
}

/**
 * Make the messages of a request for one column.
 *
 * A column remembers its own answers, and the adapted model's where it was not asked. Turns without
 * an answer are left out: a model is not asked two things in a row.
 */
export function messagesFor(turns, upTo, column, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, upTo)) {
    const said = turn.answers[column]?.text || turn.answers.adapted?.text;
    if (!said) continue;
    messages.push({ role: "user", content: content(turn) });
    messages.push({ role: "assistant", content: said });
  }
  messages.push({ role: "user", content: content(turns[upTo]) });
  return messages;
}

function content(turn) {
  if (!turn.images.length) return turn.text;
  const parts = turn.images.map((url) => ({ type: "image_url", image_url: { url } }));
  return turn.text ? [...parts, { type: "text", text: turn.text }] : parts;
}
