// Asks llama.cpp (npm's @fugood/llama.node) about GGUF files: `node llama_cpp.cjs < WORK.json`.
//
// WORK is a list of {"model": FILE, ...}; a JSON list comes out, one object for each. With
//
//   "turns": MESSAGES   "chat" is what the file's chat template writes, "chat_ids" its tokens
//   "text": PROMPT      "ids" are its tokens, "answers" a list of one answer
//   "mmproj": FILE, "images": [FILE, ...]   as "text", and "answers" has one for each image, which
//                       stands in the prompt as <__media__>
//   "tokens": N, "sampled": N   the lengths of an answer's two texts; 24 and 1 if they are not given
//
// An answer is {"greedy": TOKENS, "text": the same as one string, "ended": whether it stopped at an
// end of turn, "steps": [{"token": TOKEN, "next": {TOKEN: PROBABILITY}}] of a text that was sampled,
// "next": that of the first step}.
const fs = require("fs");
const path = require("path");
const { loadModel } = require(path.join(process.env.LLAMA_NODE, "@fugood/llama.node"));

const EXACT = {
  n_ctx: 256, n_threads: 1, n_parallel: 1, n_gpu_layers: 0, use_mmap: false,
  cache_type_k: "f32", cache_type_v: "f32", flash_attn_type: "off",
};
// xtc_probability: the package has 0.1 with a threshold of 0, so in a tenth of all steps it would
// write the least likely token that min_p leaves (findings/llama-node-temperature-0-is-not-greedy.sh).
const UNTOUCHED = { penalty_repeat: 1, penalty_freq: 0, penalty_present: 0, xtc_probability: 0 };
const GREEDY = { ...UNTOUCHED, temperature: 0, n_probs: 1 };
const NEUTRAL = { ...UNTOUCHED, temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed: 1, n_probs: 100000 };

const opened = []; // never released: a release may use memory that is freed already

// A model's context. Its native method is called, because the package's own adds a callback, which
// reads the context even after its release. Under load the package misses the end of a short answer and
// refuses all further ones: then the model is loaded anew (findings/llama-node-context-used-again.sh).
async function open({ model, mmproj }) {
  const load = async () => {
    const context = await loadModel({ model, ...EXACT });
    if (mmproj) await context.initMultimodal({ path: mmproj, use_gpu: false });
    opened.push(context);
    return context;
  };
  let context = await load();
  let known = 0;
  const ask = async (options) => {
    const found = await context.ctx.completion(options);
    const steps = found.completion_probabilities.slice(known); // the former texts' stay in front
    known += steps.length;
    return { ...found, steps };
  };
  const complete = async (options) => {
    try {
      return await ask(options);
    } catch (error) {
      if (!error.message.includes("Another completion is in progress")) throw error;
      [context, known] = [await load(), 0];
      return ask(options);
    }
  };
  return { context, complete };
}

async function answer(complete, asked, { tokens = 24, sampled = 1 }) {
  const greedy = await complete({ ...asked, ...GREEDY, n_predict: tokens });
  const other = await complete({ ...asked, ...NEUTRAL, n_predict: sampled });
  const steps = other.steps.map(({ content, probs }) => ({
    token: content, next: Object.fromEntries(probs.map((one) => [one.tok_str, one.prob])),
  }));
  return {
    greedy: greedy.steps.map((one) => one.content).filter(Boolean),
    text: greedy.text, ended: greedy.stopped_eos, steps, next: steps[0].next,
  };
}

async function ask(job) {
  const { text, turns, images } = job;
  const { context, complete } = await open(job);
  const found = {};
  if (turns) {
    found.chat = (await context.getFormattedChat(turns, undefined, { jinja: true })).prompt;
    found.chat_ids = Array.from((await context.tokenize(found.chat)).tokens);
  }
  if (text) {
    const shown = images ? images.map((image) => ({ media_paths: [image] })) : [{}];
    found.ids = images ? [] : Array.from((await context.tokenize(text)).tokens);
    found.answers = [];
    for (const one of shown) found.answers.push(await answer(complete, { prompt: text, ...one }, job));
  }
  return found;
}

(async () => {
  const answers = [];
  for (const job of JSON.parse(fs.readFileSync(0))) answers.push(await ask(job));
  fs.writeFileSync(process.env.LLAMA_ANSWERS, JSON.stringify(answers));
})();
