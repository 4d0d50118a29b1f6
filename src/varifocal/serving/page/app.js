// The chat: asks the server, shows what it writes, and keeps every conversation in the browser.

import { getJson, setKey, stream } from "./api.js";
import { Composer } from "./composer.js";
import {
  addTurn, branch, choose, COLUMNS, messagesFor, nameOf, newAnswer, newConversation, versions,
} from "./conversation.js";
import { History } from "./history.js";
import { problem, told } from "./limits.js";
import { bindSettings } from "./settings.js";
import { load, recover, save, saveAtOnce } from "./store.js";
import { make } from "./text.js";
import { View } from "./view.js";
import { look } from "./viewer.js";

const at = (id) => document.getElementById(id);
const NEAR = 80; // pixels from the end within which the page goes along with an answer

const CURRENT = "varifocal.current"; // which conversation this tab shows

const state = { conversation: newConversation(), columns: ["adapted"], running: null, editing: null };
const names = {};
let wantsEnd = true;
let examples = [];
let limits = null;

const sampling = bindSettings();
const composer = new Composer({ tell: notice, problem: refused, onSend: ask });
const view = new View(at("turns"), { edit, retry, step, copy, look });

const turns = () => branch(state.conversation);

function draw() {
  const shown = turns();
  const { conversation } = state;
  at("welcome").hidden = shown.length > 0;
  at("editing").hidden = !state.editing;
  at("new").disabled = !shown.length;
  at("conversation-name").textContent = shown.length ? nameOf(conversation) : "";
  composer.setBusy(Boolean(state.running));
  const ofTurn = (turn) => versions(conversation, turn);
  view.draw({ ...state, turns: shown, versions: ofTurn, running: Boolean(state.running) });
  follow();
}

async function keep(conversation) {
  conversation.updated = Date.now();
  try {
    await save(conversation);
  } catch {
    notice("The browser has no room left: export or delete conversations to keep this one.");
  }
}

/** Say what the server would refuse of a question at the place where it is asked. */
function refused(text, images) {
  const shown = turns();
  const upTo = state.editing ? shown.indexOf(state.editing) : shown.length;
  return problem(limits, shown.slice(0, upTo), text, images);
}

function ask(text, images) {
  if (state.running) return;
  const parent = state.editing ? state.editing.parent : turns().at(-1)?.id ?? 0;
  state.editing = null;
  askAt(parent, text, images);
}

function askAt(parent, text, images) {
  const { conversation } = state;
  if (!conversation.turns.length) {
    conversation.system = system.value.trim();
    sessionStorage.setItem(CURRENT, conversation.id);
  }
  const turn = addTurn(conversation, parent, text, images);
  wantsEnd = true;
  answer(turn, state.columns);
}

/** Have a question answered again; a whole answer stays, as another version of the turn. */
function retry(turn, column) {
  if (turn.answers[column].state === "done") askAt(turn.parent, turn.text, turn.images);
  else answer(turn, [column]);
  at("question").focus({ preventScroll: true });
}

/** Show the version of a turn that is `by` further. */
function step(turn, by) {
  const all = versions(state.conversation, turn);
  const other = all[all.indexOf(turn) + by];
  choose(state.conversation, other);
  wantsEnd = false;
  keep(state.conversation);
  draw();
  view.focusStepper(other, by);
}

/** Have some columns of a turn answered; the page is busy until all are done. */
async function answer(turn, columns) {
  if (state.running) return;
  notice("");
  const { conversation } = state;
  const running = new AbortController();
  state.running = running;
  for (const column of columns) turn.answers[column] = newAnswer();
  draw();
  keep(conversation);
  say("The answer is being written");
  const { signal } = running;
  await Promise.all(columns.map((column) => write(conversation, turn, column, signal)));
  keep(conversation);
  if (state.running !== running) return; // another conversation is shown by now
  state.running = null;
  draw();
  const failed = columns.map((column) => turn.answers[column]).find((one) => one.state === "failed");
  say(failed ? "" : signal.aborted ? "Stopped" : "The answer is complete");
  if (failed?.status === 401) askForKey(() => answer(turn, columns));
}

async function write(conversation, turn, column, signal) {
  const written = turn.answers[column];
  const shown = branch(conversation);
  const started = performance.now();
  const since = () => (performance.now() - started) / 1000;
  const onWait = (seconds) => {
    written.told = `The server is busy; asking again in ${seconds} s`;
    renewSoon(turn, column);
  };
  try {
    await ready();
    const messages = messagesFor(shown, shown.indexOf(turn), column, conversation.system);
    const body = { model: names[column], messages, ...sampling() };
    for await (const event of stream(body, signal, onWait)) {
      take(event, written, since);
      renewSoon(turn, column);
    }
    written.state = "done";
  } catch (error) {
    written.state = error.name === "AbortError" ? "stopped" : "failed";
    written.told = error.message;
    written.status = error.status ?? 0;
  }
  written.seconds = since();
  view.renew(turn, column);
}

/** Put one event of a stream into an answer. */
function take(event, written, since) {
  const choice = event.choices?.[0];
  const text = choice?.delta?.content ?? "";
  if (text) {
    written.told = "";
    written.first ??= since();
    written.text += text;
  }
  if (choice?.finish_reason === "length") written.cut = true;
  if (event.varifocal) written.route = event.varifocal.route;
  if (event.usage) written.usage = event.usage;
}

const waiting = new Set();

/** Draw an answer at the next frame, however many words have come until then. */
function renewSoon(turn, column) {
  const place = `${turn.id} ${column}`;
  if (waiting.has(place)) return;
  waiting.add(place);
  requestAnimationFrame(() => {
    waiting.delete(place);
    view.renew(turn, column);
    follow();
  });
}

function stop() {
  state.running?.abort();
  at("question").focus({ preventScroll: true });
}

function edit(turn) {
  state.editing = turn;
  composer.fill(turn.text, turn.images);
  draw();
}

function cancelEdit() {
  if (!state.editing) return;
  state.editing = null;
  composer.fill("", []);
  draw();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = make("textarea", { value: text, className: "unseen" }); // a page without https
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  say("Copied");
  flash("Copied");
}

/** Show a conversation; the one that was shown stays in the list, with what is written of it. */
function show(conversation) {
  state.running?.abort();
  Object.assign(state, { conversation, running: null, editing: null });
  sessionStorage.setItem(CURRENT, conversation.id);
  system.value = conversation.system;
  composer.fill("", []);
  notice("");
  say("");
  wantsEnd = true;
  draw();
}

async function open(id) {
  const conversation = await load(id);
  if (conversation) show(conversation);
}

/** Show the base model's column too, and have it answer the newest question if it has not. */
function compare(isOn) {
  state.columns = isOn ? COLUMNS : ["adapted"];
  sessionStorage.setItem("varifocal.compare", isOn ? "yes" : "");
  draw();
  const newest = turns().at(-1);
  if (isOn && newest && !newest.answers.base && !state.running) answer(newest, ["base"]);
}

function say(sentence) {
  at("status").textContent = sentence;
}

function notice(sentence, again = null) {
  const [words, button] = at("notice").children;
  words.textContent = sentence;
  button.hidden = !again;
  button.onclick = again;
  at("notice").hidden = !sentence;
}

let flashing = 0;

/** Show a word for a moment. */
function flash(word) {
  clearTimeout(flashing);
  notice(word);
  flashing = setTimeout(() => { if (at("notice").firstChild.textContent === word) notice(""); }, 1500);
}

function askForKey(then) {
  const dialog = at("key-dialog");
  if (dialog.open) return;
  at("key").value = "";
  dialog.returnValue = "";
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "done" || !at("key").value) {
      notice("This server asks for a key.", () => askForKey(then));
      return;
    }
    setKey(at("key").value.trim());
    notice("");
    then();
  }, { once: true });
  dialog.showModal();
}

const fromEnd = () =>
  document.documentElement.scrollHeight - window.innerHeight - window.scrollY;

function follow() {
  const isEmpty = !state.conversation.turns.length;
  if (wantsEnd && !isEmpty) window.scrollTo({ top: document.documentElement.scrollHeight });
  at("to-end").hidden = wantsEnd || isEmpty;
}

window.addEventListener("scroll", () => {
  wantsEnd = fromEnd() < NEAR;
  at("to-end").hidden = wantsEnd || !state.conversation.turns.length;
}, { passive: true });

let beginning = null;

/** Learn the models' names, once; a question that comes earlier waits for it. */
function ready() {
  beginning ??= begin().catch((error) => {
    beginning = null;
    throw error;
  });
  return beginning;
}

async function begin() {
  const models = (await getJson("v1/models")).data.map((model) => model.id);
  names.adapted = models.find((id) => !id.endsWith(":base") && !id.endsWith(":text")) ?? models[0];
  names.base = models.find((id) => id === `${names.adapted}:base`);
  view.names = names;
  at("model-name").textContent = names.adapted;
  document.title = `${names.adapted} · Varifocal`;
  at("compare-label").hidden = !names.base;
  const [questions, routing, bounds] = await Promise.allSettled(
    ["examples", "routing", "limits"].map((name) => getJson(`v1/varifocal/${name}`)));
  limits = bounds.value ?? null;
  if (limits) {
    composer.setLimits(limits);
    at("limits").textContent = told(limits);
    view.basesImages = limits.base_images;
    if (!limits.images) {
      at("welcome-title").textContent = "Ask a question";
      at("welcome-words").textContent = "Or begin with one of these.";
    }
  }
  examples = questions.value ?? [];
  view.layers = routing.value?.layers ?? [];
  at("examples").replaceChildren(...examples.map(card));
}

function card({ title, text, images }) {
  const words = make("span", { className: "words" }, make("strong", {}, title), make("span", {}, text));
  const button = make("button", { type: "button", onclick: () => ask(text, images) });
  if (images.length) button.append(make("img", { src: images[0], alt: "" }));
  button.append(words);
  return make("li", {}, button);
}

async function start() {
  try {
    await ready();
    notice("");
    if (names.base && sessionStorage.getItem("varifocal.compare")) {
      at("compare").checked = true;
      state.columns = COLUMNS;
    }
  } catch (error) {
    if (error.status === 401) askForKey(start);
    else notice(error.message, start);
  }
  draw();
}

at("stop").addEventListener("click", stop);
at("new").addEventListener("click", () => show(newConversation()));
at("cancel-edit").addEventListener("click", cancelEdit);
at("no-key").addEventListener("click", () => at("key-dialog").close());
at("compare").addEventListener("change", (event) => compare(event.target.checked));
at("to-end").addEventListener("click", () => {
  wantsEnd = true;
  follow();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (state.running) stop();
  else cancelEdit();
});
// Else the answer that a reload cuts off looks like one that a lost connection cut off.
window.addEventListener("beforeunload", () => state.running?.abort());
window.addEventListener("pagehide", () => {
  if (state.conversation.turns.length) saveAtOnce(state.conversation);
});

const system = at("system");
system.addEventListener("change", () => {
  state.conversation.system = system.value.trim();
  if (state.conversation.turns.length) keep(state.conversation);
});

new History({
  current: () => state.conversation,
  names: () => names,
  open,
  renamed: (id, name) => {
    if (state.conversation.id !== id) return;
    state.conversation.name = name;
    draw();
  },
  removed: (id) => { if (state.conversation.id === id) show(newConversation()); },
});

draw();
await recover();
const former = sessionStorage.getItem(CURRENT);
if (former) await open(former);
start();
if (!matchMedia("(pointer: coarse)").matches) at("question").focus();
