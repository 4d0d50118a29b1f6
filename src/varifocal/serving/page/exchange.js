// Conversations as files: written as Markdown or JSON, read as JSON.

import { branch, COLUMNS, nameOf, newConversation } from "./conversation.js";
import { make } from "./text.js";

const FORMAT = "varifocal-conversation";
const STATES = ["done", "stopped", "failed"];

export function toJson(conversation) {
  return JSON.stringify({ format: FORMAT, version: 1, conversation }, null, 1);
}

/** Write the branch that is shown; `names` are the models' by column. */
export function toMarkdown(conversation, names) {
  const parts = [`# ${nameOf(conversation)}`];
  if (conversation.system) parts.push(`*System prompt:* ${conversation.system}`);
  for (const turn of branch(conversation)) {
    parts.push("## Question", ...turn.images.map((image, index) => `![image ${index + 1}](${image})`), turn.text);
    for (const column of COLUMNS) {
      const said = turn.answers[column]?.text;
      if (said) parts.push(`## ${names[column] ?? column}`, said);
    }
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const file = name.replace(/[^\p{L}\p{N} _.-]+/gu, "").trim() || "conversation";
  make("a", { href: url, download: `${file}.${type === "application/json" ? "json" : "md"}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Read a conversation; throws an Error with a sentence where the text is none. */
export function fromJson(text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error("This file is no JSON: choose one that was exported here.");
  }
  const { conversation } = given ?? {};
  if (given?.format !== FORMAT || !Array.isArray(conversation?.turns)) {
    throw new Error("This file holds no conversation: choose one that was exported here as JSON.");
  }
  const read = newConversation();
  read.name = words(conversation.name);
  read.system = words(conversation.system);
  for (const turn of conversation.turns) readTurn(read, turn);
  for (const turn of read.turns) {
    if (conversation.chosen?.[turn.parent] === turn.id) read.chosen[turn.parent] = turn.id;
  }
  return read;
}

const words = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : null);

/** Add a turn that is whole and hangs below an earlier one; others have no place to be shown. */
function readTurn(read, turn) {
  const known = (id) => read.turns.some((other) => other.id === id);
  if (!Number.isInteger(turn?.id) || turn.id < 1 || known(turn.id)) return;
  if (turn.parent !== 0 && !known(turn.parent)) return;
  const images = (Array.isArray(turn.images) ? turn.images : [])
    .filter((image) => typeof image === "string" && image.startsWith("data:image/"));
  const answers = {};
  for (const column of COLUMNS) {
    const given = turn.answers?.[column];
    if (given) answers[column] = readAnswer(given);
  }
  read.turns.push({ id: turn.id, parent: turn.parent, text: words(turn.text), images, answers });
}

function readAnswer(given) {
  const { prompt_tokens: prompt, completion_tokens: written } = given.usage ?? {};
  const counted = Number.isFinite(prompt) && Number.isFinite(written);
  return {
    text: words(given.text),
    state: STATES.includes(given.state) ? given.state : "stopped",
    told: words(given.told),
    route: ["text", "image", "base"].includes(given.route) ? given.route : null,
    usage: counted ? { prompt_tokens: prompt, completion_tokens: written } : null,
    seconds: number(given.seconds),
    first: number(given.first),
    cut: given.cut === true,
  };
}
