// The conversation: what was asked, what was answered, what is sent, and how it outlives a reload.

const PLACE = "varifocal.turns";
const MOST_KEPT = 4_000_000; // characters; browsers give a tab about five million

/** The columns: the adapted model, and the same model without its adapter. */
export const COLUMNS = ["adapted", "base"];

let last = 0;

export function newTurn(text, images) {
  last += 1;
  return { id: last, text, images, answers: {} };
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
export function messagesFor(turns, upTo, column) {
  const messages = [];
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
  const kept = turn.images.filter(Boolean);
  if (!kept.length) return turn.text;
  const parts = kept.map((url) => ({ type: "image_url", image_url: { url } }));
  return turn.text ? [...parts, { type: "text", text: turn.text }] : parts;
}

/** Keep the conversation; where it is too large, the oldest images go first (as null). */
export function save(turns) {
  const kept = turns.map((turn) => ({ ...turn, images: [...turn.images] }));
  const places = kept.flatMap((turn) => turn.images.map((_, index) => [turn, index]));
  for (;;) {
    const packed = JSON.stringify(kept);
    if (packed.length <= MOST_KEPT && store(packed)) return;
    const place = places.shift();
    if (!place) return;
    place[0].images[place[1]] = null;
  }
}

function store(packed) {
  try {
    sessionStorage.setItem(PLACE, packed);
    return true;
  } catch {
    return false; // full
  }
}

/** Bring a conversation back; an answer that was being written then is marked as cut off. */
export function restore() {
  let turns;
  try {
    turns = JSON.parse(sessionStorage.getItem(PLACE)) ?? [];
  } catch {
    turns = [];
  }
  for (const turn of turns) {
    last = Math.max(last, turn.id);
    for (const answer of Object.values(turn.answers)) {
      if (answer.state === "writing") answer.state = "stopped";
    }
  }
  return turns;
}
