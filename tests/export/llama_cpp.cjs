// Asks llama.cpp (npm's @fugood/llama.node) about GGUF files: `node llama_cpp.cjs < WORK.json`.
//
// WORK is [{"model": FILE, "text": PROMPT, "turns": MESSAGES or none}]; a JSON list comes out, for
// each {"ids": the prompt's tokens, "next": {TOKEN: PROBABILITY}, "greedy": what it goes on to
// write, "chat": the turns as the file's chat template writes them, "chat_ids": their tokens}; without
// a "text" the last two alone.
// With "mmproj": FILE and "images": [FILE, ...] it is {"answers": [...]}, "next" for each image, which
// stands in the prompt as <__media__>.
const fs = require("fs");
const path = require("path");
const { loadModel } = require(path.join(process.env.LLAMA_NODE, "@fugood/llama.node"));

const EXACT = {
  n_ctx: 256, n_threads: 1, n_parallel: 1, n_gpu_layers: 0, use_mmap: false,
  cache_type_k: "f32", cache_type_v: "f32", flash_attn_type: "off",
};
const UNTOUCHED = { penalty_repeat: 1, penalty_freq: 0, penalty_present: 0 };
const GREEDY = { temperature: 0, ...UNTOUCHED };
const NEUTRAL = { ...UNTOUCHED, temperature: 1, top_k: 0, top_p: 1, min_p: 0, seed: 1 };

async function ask({ model, text, turns, mmproj, images }) {
  if (mmproj) return askAboutImages(model, mmproj, text, images);
  const context = await loadModel({ model, ...EXACT });
  const chat = turns && (await context.getFormattedChat(turns, undefined, { jinja: true })).prompt;
  const chatIds = chat && Array.from((await context.tokenize(chat)).tokens);
  if (!text) {
    await context.release();
    return { chat, chat_ids: chatIds };
  }
  const { tokens } = await context.tokenize(text);
  const sampled = await context.completion({ prompt: text, n_predict: 1, n_probs: 1000, ...NEUTRAL });
  const pairs = sampled.completion_probabilities[0].probs.map((one) => [one.tok_str, one.prob]);
  const greedy = await context.completion({ prompt: text, n_predict: 24, ...GREEDY });
  await context.release();
  return {
    chat, chat_ids: chatIds,
    ids: Array.from(tokens), next: Object.fromEntries(pairs), greedy: greedy.text,
    ended: greedy.stopped_eos,
  };
}

async function askAboutImages(model, mmproj, text, images) {
  const answers = [];
  for (const image of images) {
    // a fresh context for each: one that is used again has answered otherwise
    const context = await loadModel({ model, ...EXACT });
    await context.initMultimodal({ path: mmproj, use_gpu: false });
    const asked = { prompt: text, media_paths: [image] };
    const sampled = await context.completion({ ...asked, n_predict: 1, n_probs: 1000, ...NEUTRAL });
    await context.release();
    const pairs = sampled.completion_probabilities[0].probs.map((one) => [one.tok_str, one.prob]);
    answers.push({ next: Object.fromEntries(pairs) });
  }
  return { answers };
}

(async () => {
  const answers = [];
  for (const job of JSON.parse(fs.readFileSync(0))) answers.push(await ask(job));
  fs.writeFileSync(process.env.LLAMA_ANSWERS, JSON.stringify(answers));
})();
