// Keeps conversations in the browser (IndexedDB), images apart, so that a list of them is read fast.

const NAME = "varifocal";
const CUT_OFF = "varifocal.cut-off"; // what a page that is left had no time to write
const STORES = ["conversations", "images"];

let opening = null;
const memory = new Map(STORES.map((store) => [store, new Map()])); // where storage is shut off

function open() {
  opening ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => {
        for (const store of STORES) request.result.createObjectStore(store, { keyPath: "id" });
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opening;
}

/** Run requests in one transaction; `work` gets the stores by name and may return a request. */
async function transact(mode, work) {
  const database = await open();
  if (!database) return work(Object.fromEntries([...memory].map(([name, held]) => [name, inMemory(held)]))).result;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORES, mode);
    const request = work(Object.fromEntries(STORES.map((name) => [name, transaction.objectStore(name)])));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

function inMemory(held) {
  return {
    put: (one) => ({ result: held.set(one.id, structuredClone(one)) }),
    get: (id) => ({ result: held.get(id) }),
    getAll: () => ({ result: [...held.values()] }),
    delete: (id) => ({ result: held.delete(id) }),
  };
}

/** Split a conversation into its words and its images (turn id -> data URIs). */
function split(conversation) {
  const images = {};
  const turns = conversation.turns.map((turn) => {
    if (turn.images.length) images[turn.id] = turn.images;
    return { ...turn, images: turn.images.length };
  });
  return [{ ...conversation, turns }, { id: conversation.id, images }];
}

function joined(words, held) {
  const turns = words.turns.map((turn) => ({ ...turn, images: held?.images[turn.id] ?? [] }));
  for (const turn of turns) {
    for (const answer of Object.values(turn.answers)) {
      if (answer.state === "writing") answer.state = "stopped";
    }
  }
  return { ...words, turns };
}

/** Keep a conversation; throws where the browser has no room left. */
export function save(conversation) {
  const [words, images] = split(conversation);
  return transact("readwrite", ({ conversations, images: held }) => {
    held.put(images);
    return conversations.put(words);
  });
}

/** Keep the words at once: a page that is left does not wait for a database. */
export function saveAtOnce(conversation) {
  try {
    localStorage.setItem(CUT_OFF, JSON.stringify(split(conversation)[0]));
  } catch {
    // Full, or shut off: what the database holds already stays.
  }
}

/** Bring back what `saveAtOnce` wrote; once, before anything is read. */
export async function recover() {
  let words;
  try {
    words = JSON.parse(localStorage.getItem(CUT_OFF));
    localStorage.removeItem(CUT_OFF);
  } catch {
    return;
  }
  if (!words) return;
  const there = await transact("readonly", ({ conversations }) => conversations.get(words.id));
  if (there && there.updated <= words.updated) {
    await transact("readwrite", ({ conversations }) => conversations.put(words));
  }
}

export async function load(id) {
  const words = await transact("readonly", ({ conversations }) => conversations.get(id));
  const held = words && await transact("readonly", ({ images }) => images.get(id));
  return words ? joined(words, held) : null;
}

/** All conversations without their images, the newest first. */
export async function list() {
  const all = await transact("readonly", ({ conversations }) => conversations.getAll());
  return all.sort((one, other) => other.updated - one.updated);
}

export function remove(id) {
  return transact("readwrite", ({ conversations, images }) => {
    images.delete(id);
    return conversations.delete(id);
  });
}
